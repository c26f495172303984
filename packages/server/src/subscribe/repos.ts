/** What a consumer of `com.atproto.sync.subscribeRepos` may ask for beyond the stream that everybody gets. */
import type { IncomingMessage } from 'node:http'
import { Refused } from '@millisky/core/errors'
import { errorFrame, infoFrame } from '@millisky/core/event'
import { SEQ_MAX } from '@millisky/core/limits'
import type { ServerOptions } from 'ws'
import type { Batch } from '../log/log.ts'
import { batchOf, digestOf, type Entries, jsonError, jsonMessage, type Packing } from './digest.ts'
import type { Deal, Endpoint, Form } from './form.ts'
import { Wants } from './wants.ts'

/** What is offered. Consumers who ask for none of it do not notice any. */
export interface Extras {
  /** `wantedCollections`, `wantedDids` and `wantedKinds`. */
  readonly filters: boolean
  /** `compress=true` with a client that offers permessage-deflate. */
  readonly compression: boolean
  /** The subprotocol `xrpc.v1.json`. */
  readonly json: boolean
}

export const NO_EXTRAS: Extras = { filters: false, compression: false, json: false }

const JSON_PROTOCOL = 'xrpc.v1.json'
const CBOR_PROTOCOL = 'xrpc.v0.cbor'
const WANTED = ['wantedCollections', 'wantedDids', 'wantedKinds']

export class ReposEndpoint implements Endpoint {
  readonly #extras: Extras
  readonly #entries: Entries
  readonly #plain: ServerOptions
  readonly #deflating: ServerOptions

  constructor(extras: Extras, socket: ServerOptions, entries: Entries) {
    this.#extras = extras
    this.#entries = entries
    const handleProtocols = (offered: Set<string>) => chooseProtocol([...offered], extras) ?? false
    this.#plain = { ...socket, handleProtocols }
    // Each message is compressed on its own: so all consumers can have the same bytes, and none costs memory for a window.
    const alone = { serverNoContextTakeover: true, clientNoContextTakeover: true, serverMaxWindowBits: 15 }
    this.#deflating = { ...this.#plain, perMessageDeflate: alone }
  }

  negotiate(request: IncomingMessage, params: URLSearchParams): Deal {
    const cursor = parseCursor(params)
    const wants = this.#wants(params)
    const deflate = this.#compress(request, params)
    const json = chooseProtocol(protocolsOf(request), this.#extras) === JSON_PROTOCOL
    const socket = deflate ? this.#deflating : this.#plain
    if (!wants && !deflate && !json) return { form: null, socket, cursor }
    const packing: Packing = `${json ? 'json' : 'cbor'}${deflate ? '+deflate' : ''}`
    return { form: new ReposForm(packing, wants, this.#entries), socket, cursor }
  }

  #wants(params: URLSearchParams): Wants | null {
    for (const name of params.keys()) {
      if (!name.startsWith('wanted')) continue
      if (!this.#extras.filters) throw new Refused('InvalidRequest', `${name}: this server does not filter its stream`)
      if (!WANTED.includes(name))
        throw new Refused('InvalidRequest', `no such filter: ${name}; there are ${WANTED.join(', ')}`)
    }
    return Wants.parse({
      collections: params.getAll('wantedCollections'),
      dids: params.getAll('wantedDids'),
      kinds: params.getAll('wantedKinds'),
    })
  }

  #compress(request: IncomingMessage, params: URLSearchParams): boolean {
    if (!parseFlag(params, 'compress')) return false
    if (!this.#extras.compression)
      throw new Refused('InvalidRequest', 'compress: this server does not compress its stream')
    if (!/\bpermessage-deflate\b/.test(request.headers['sec-websocket-extensions'] ?? '')) {
      throw new Refused('InvalidRequest', 'compress needs a WebSocket client that offers permessage-deflate')
    }
    return true
  }
}

/** Whole frames, fewer of them, or put differently. */
class ReposForm implements Form {
  readonly name: string
  readonly #packing: Packing
  readonly #wants: Wants | null
  readonly #entries: Entries

  constructor(packing: Packing, wants: Wants | null, entries: Entries) {
    this.#packing = packing
    this.#entries = entries
    this.#wants = wants
    this.name = wants ? `${packing}, filtered` : packing
  }

  select(batch: Batch): Batch {
    const digest = digestOf(batch, this.#entries)
    return digest.once(this.#packing, this.#wants, () => {
      const messages: Uint8Array[] = []
      for (const entry of digest.entries) {
        if (this.#wants && !this.#wants.admits(entry)) continue
        const message = entry.as(this.#packing)
        if (message) messages.push(message)
      }
      return batchOf(batch.last, messages)
    })
  }

  error(error: string, message: string): Uint8Array | string {
    return this.#isJson ? jsonError(error, message) : errorFrame(error, message)
  }

  info(name: string, message: string): Uint8Array | string {
    return this.#isJson ? jsonMessage('info', { name, message }) : infoFrame(name, message)
  }

  get #isJson(): boolean {
    return this.#packing.startsWith('json')
  }
}

function protocolsOf({ headers }: IncomingMessage): string[] {
  return (headers['sec-websocket-protocol'] ?? '').split(',').flatMap(name => name.trim() || [])
}

/** The client's first choice that can be had. One that says nothing of the form is let have its name. */
function chooseProtocol(offered: readonly string[], { json }: Extras): string | undefined {
  return offered.find(name => name === CBOR_PROTOCOL || (name === JSON_PROTOCOL ? json : !name.startsWith('xrpc.')))
}

/** @throws Refused unless there is none, or one that is a decimal integer from 0 to 2^53 - 1 */
export function parseCursor(params: URLSearchParams): number | null {
  const given = params.getAll('cursor')
  // Nothing after `cursor=` is no cursor, as in all parameters of methods.
  if (given.every(text => text === '')) return null
  const [text = ''] = given
  const cursor = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
  if (given.length > 1 || !(cursor <= SEQ_MAX)) {
    throw new Refused('InvalidRequest', 'cursor must be one integer, zero or greater')
  }
  return cursor
}

/** @throws Refused unless there is none, or one that is `true` or `false` */
export function parseFlag(params: URLSearchParams, name: string): boolean {
  const given = params.getAll(name)
  if (given.length === 0) return false
  if (given.length > 1 || (given[0] !== 'true' && given[0] !== 'false')) {
    throw new Refused('InvalidRequest', `${name} must be true or false`)
  }
  return given[0] === 'true'
}
