/**
 * DID documents: what the protocol reads from them, and writing them.
 *
 * Reading is forgiving by entry and strict by meaning: an entry of the wrong shape is passed over, and what remains
 * is `null` rather than a guess. Fetching documents and confirming handles is the caller's business.
 *
 * Source: atproto.com/specs/did, W3C DID Core.
 */
import { PublicKey } from './crypto.ts'
import { Malformed } from './errors.ts'
import { type Did, type Handle, isDid, isHandle, isResolvableHandle, normalizeHandle } from './syntax.ts'

/** A JSON object of which nothing is known. */
type Unknowns = { readonly [key: string]: unknown }

/** A DID document as it came, of which only `id` has been checked. */
export interface DidDocument extends Unknowns {
  readonly id: Did
}

/** What the protocol needs to know of an account. `null` where the document does not say, or not validly. */
export interface Identity {
  did: Did
  /** As the document claims it, lowercased; it still has to be confirmed by resolving it back to `did`. */
  handle: Handle | null
  /** The account's signing key as a `did:key`. */
  signingKey: string | null
  /** The origin of the account's PDS, `https://host` or `https://host:port` (`http` in development), no slash at its end. */
  pds: string | null
  doc: DidDocument
}

function isObject(value: unknown): value is Unknowns {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Entries of a list, in the document's order, whose id is `#name` or `did#name`. */
function* entriesById(list: unknown, did: Did, id: string): Generator<Unknowns> {
  if (!Array.isArray(list)) return
  const fragment = id.startsWith('#') ? id : `#${id}`
  for (const entry of list as unknown[]) {
    if (isObject(entry) && (entry.id === fragment || entry.id === did + fragment)) yield entry
  }
}

function parseHttpUrl(text: unknown): URL | null {
  if (typeof text !== 'string' || !/^https?:\/\//.test(text)) return null
  return URL.parse(text)
}

/**
 * The URL of a service, as the document has it: `http` or `https`, else `null`. Only the first entry
 * of that id (and type, where given) counts.
 *
 * @param id with or without its `#`
 */
export function serviceEndpoint(doc: DidDocument, did: Did, id: string, type?: string): string | null {
  for (const entry of entriesById(doc.service, did, id)) {
    if (type !== undefined && entry.type !== type) continue
    return parseHttpUrl(entry.serviceEndpoint) === null ? null : (entry.serviceEndpoint as string)
  }
  return null
}

/** URL parsing forgives blanks, `@` and a bare `?`; an origin written down has none of these. */
const ORIGIN = /^https?:\/\/[A-Za-z0-9._:[\]-]+\/?$/

/**
 * The origin of a URL that has a scheme, a host and perhaps a port and nothing more (one slash at its end is forgiven).
 * `null` for any other text.
 */
export function originOf(text: unknown): string | null {
  const url = parseHttpUrl(text)
  return url !== null && ORIGIN.test(text as string) ? url.origin : null
}

function readKey(method: Unknowns): PublicKey | null {
  const text = method.publicKeyMultibase
  if (typeof text !== 'string') return null
  try {
    switch (method.type) {
      case 'Multikey':
        return PublicKey.parseMultibase(text)
      case 'EcdsaSecp256k1VerificationKey2019':
        return PublicKey.parseLegacyMultibase('k256', text)
      case 'EcdsaSecp256r1VerificationKey2019':
        return PublicKey.parseLegacyMultibase('p256', text)
      default:
        return null
    }
  } catch {
    return null
  }
}

/**
 * The first valid key of that id which the DID itself controls.
 *
 * @param id with or without its `#`, such as `#atproto` or `#atproto_label`
 */
export function verificationKey(doc: DidDocument, did: Did, id: string): PublicKey | null {
  for (const method of entriesById(doc.verificationMethod, did, id)) {
    const key = method.controller === did ? readKey(method) : null
    if (key !== null) return key
  }
  return null
}

function claimedHandle(doc: DidDocument): Handle | null {
  if (!Array.isArray(doc.alsoKnownAs)) return null
  for (const alias of doc.alsoKnownAs as unknown[]) {
    if (typeof alias !== 'string' || !alias.startsWith('at://')) continue
    const name = alias.slice(5)
    if (isHandle(name)) return normalizeHandle(name)
  }
  return null
}

/**
 * Reads an account's identity from its DID document.
 * The handle is the first of valid syntax and no later one, whether it resolves or not.
 *
 * @param doc parsed JSON, from anywhere
 * @throws {@link Malformed} when it is not an object, or the document of another DID.
 */
export function parseDidDocument(doc: unknown, did: Did): Identity {
  if (!isObject(doc)) throw new Malformed('DID document is not an object')
  if (doc.id !== did) throw new Malformed('DID document is that of another DID')
  const document = doc as DidDocument
  return {
    did,
    handle: claimedHandle(document),
    signingKey: verificationKey(document, did, '#atproto')?.didKey ?? null,
    pds: originOf(serviceEndpoint(document, did, '#atproto_pds', 'AtprotoPersonalDataServer')),
    doc: document,
  }
}

/** The method of a DID if the protocol supports it, else null. */
export function didMethod(did: Did): 'plc' | 'web' | null {
  const method = did.slice(4, did.indexOf(':', 4))
  return method === 'plc' || method === 'web' ? method : null
}

const DEVELOPMENT_WEB = /^localhost(?:%3A([1-9][0-9]{0,4}))?$/i

/**
 * Where the document of a `did:web` lies. It is a host name of the public DNS and nothing else: no path, no port.
 *
 * @param options.development admits `localhost`, with a port as `%3A1234`, by plain http, and the domain `.test`
 * @throws {@link Malformed}
 */
export function didWebUrl(did: Did, options: { development?: boolean } = {}): string {
  if (didMethod(did) !== 'web') throw new Malformed('not a did:web')
  const host = did.slice(8)
  if (isHandle(host)) {
    if (isResolvableHandle(host, { allowTest: options.development === true }))
      return `https://${host}/.well-known/did.json`
    throw new Malformed('did:web of a domain that never resolves')
  }
  const local = options.development === true ? DEVELOPMENT_WEB.exec(host) : null
  if (local === null || Number(local[1] ?? 1) > 65_535) throw new Malformed('did:web is not a plain host name')
  return `http://localhost${local[1] === undefined ? '' : `:${local[1]}`}/.well-known/did.json`
}

/**
 * Takes apart `did#id`, by which `atproto-proxy`, token audiences and scopes name a service.
 * @returns `id` without its `#`
 * @throws {@link Malformed}
 */
export function parseServiceRef(text: string): { did: Did; id: string } {
  const hash = text.indexOf('#')
  const did = text.slice(0, Math.max(0, hash))
  const id = text.slice(hash + 1)
  if (!isDid(did) || !/^[\x21-\x7e]+$/.test(id) || id.includes('#')) throw new Malformed('not a service reference')
  return { did, id }
}

/** The content of a DID document, in the shape of a did:plc operation. Ids come without `#`. */
export interface DidContent {
  /** URIs, the handle's as `at://handle`. */
  alsoKnownAs: readonly string[]
  /** `did:key`s by id. */
  verificationMethods: { readonly [id: string]: string }
  services: { readonly [id: string]: { readonly type: string; readonly endpoint: string } }
}

const CONTEXTS = ['https://www.w3.org/ns/did/v1', 'https://w3id.org/security/multikey/v1']
const CONTEXT_K256 = 'https://w3id.org/security/suites/secp256k1-2019/v1'
const CONTEXT_P256 = 'https://w3id.org/security/suites/ecdsa-2019/v1'

/** The JSON of a written DID document, its members in the order that directories use. */
export interface WrittenDidDocument {
  '@context': string[]
  id: Did
  alsoKnownAs: string[]
  verificationMethod: { id: string; type: 'Multikey'; controller: Did; publicKeyMultibase: string }[]
  service: { id: string; type: string; serviceEndpoint: string }[]
}

/** Writes a DID document, member by member as the did:plc directory does. Keys of unknown curves are copied. */
export function buildDidDocument(did: Did, content: DidContent): WrittenDidDocument {
  const keys = Object.entries(content.verificationMethods).map(([id, key]) => ({ id, multibase: key.slice(8) }))
  const contexts = new Set(CONTEXTS)
  for (const { multibase } of keys) {
    if (multibase.startsWith('zQ3s')) contexts.add(CONTEXT_K256)
    if (multibase.startsWith('zDn')) contexts.add(CONTEXT_P256)
  }
  return {
    '@context': [...contexts],
    id: did,
    alsoKnownAs: [...content.alsoKnownAs],
    verificationMethod: keys.map(({ id, multibase }) => ({
      id: `${did}#${id}`,
      type: 'Multikey',
      controller: did,
      publicKeyMultibase: multibase,
    })),
    service: Object.entries(content.services).map(([id, { type, endpoint }]) => ({
      id: `#${id}`,
      type,
      serviceEndpoint: endpoint,
    })),
  }
}
