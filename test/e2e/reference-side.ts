// Asking one server and keeping what it said, in words that do not differ from one server to the other.
import { createSecretKey } from 'node:crypto'
import { SignJWT } from 'jose'
import { ADMIN_PASSWORD, JWT_SECRET, type Server } from './reference.ts'

export interface Said {
  status: number
  error?: string
  message?: string
  /** What a client may read of a reply; texts that differ by nature are named. */
  body?: unknown
  headers: Record<string, string>
}

export interface Reply {
  status: number
  headers: Headers
  // biome-ignore lint/suspicious/noExplicitAny: scenarios look into it freely
  json: any
  text: string
}

/** A person with an account. */
export interface Someone {
  name: string
  did: string
  handle: string
  email: string
  password: string
  accessJwt: string
  refreshJwt: string
}

export interface Ask {
  verb?: 'GET' | 'POST' | 'HEAD' | 'OPTIONS' | 'PUT' | 'DELETE'
  params?: Record<string, unknown>
  body?: unknown
  /** `Authorization`, or whose access token. */
  auth?: string | Someone
  headers?: Record<string, string>
}

/** Headers that clients go by. */
const HEADERS = [
  'content-type',
  'cache-control',
  'vary',
  'www-authenticate',
  'retry-after',
  'content-disposition',
  'content-security-policy',
  'x-content-type-options',
  'atproto-repo-rev',
  'atproto-content-labelers',
  'access-control-allow-origin',
  'access-control-max-age',
  'location',
]

export class Side {
  readonly server: Server
  readonly said = new Map<string, Said>()
  readonly #names = new Map<string, string>()

  constructor(server: Server) {
    this.server = server
    this.name(server.appView.did, '<app view>')
    this.name(server.appView.url, '<app view url>')
    this.name(server.url, '<url>')
    this.name(encodeURIComponent(server.url.slice('http://'.length)), '<host>')
    this.name(server.url.slice('http://'.length), '<host>')
  }

  /** Writes `name` for `value` wherever it is said. */
  name(value: string, name: string): void {
    this.#names.set(value, name)
  }

  /** The name written for a value, or the value. */
  nameOf(value: string): string {
    return this.#names.get(value) ?? value
  }

  /** Asks without keeping. */
  async ask(method: string, { verb, params = {}, body, auth, headers = {} }: Ask = {}): Promise<Reply> {
    const search = new URLSearchParams()
    for (const [key, value] of Object.entries(params)) {
      for (const item of Array.isArray(value) ? value : [value]) search.append(key, String(item))
    }
    const path = method.startsWith('/') ? method : `/xrpc/${method}`
    const url = `${this.server.url}${path}${search.size > 0 ? `?${search}` : ''}`
    const isRaw = body instanceof Uint8Array || typeof body === 'string'
    const authorization = typeof auth === 'string' ? auth : auth && `Bearer ${auth.accessJwt}`
    const response = await fetch(url, {
      method: verb ?? (body === undefined ? 'GET' : 'POST'),
      redirect: 'manual',
      ...(body === undefined || body === NONE ? {} : { body: isRaw ? (body as string) : JSON.stringify(body) }),
      headers: {
        ...(body === undefined || body === NONE || isRaw ? {} : { 'content-type': 'application/json' }),
        ...(authorization ? { authorization } : {}),
        ...headers,
      },
    })
    const text = await response.text()
    const isJson = response.headers.get('content-type')?.startsWith('application/json')
    return { status: response.status, headers: response.headers, json: isJson ? parsed(text) : null, text }
  }

  /** Asks, keeps what was said under a name of its own, and gives it back for the next step. */
  async say(name: string, method: string, ask: Ask = {}): Promise<Reply> {
    const reply = await this.ask(method, ask)
    this.keep(name, reply)
    return reply
  }

  keep(name: string, { status, headers, json, text }: Reply): void {
    if (this.said.has(name)) throw new Error(`${name}: said already`)
    const kept: Said = { status, headers: {} }
    for (const header of HEADERS) {
      const value = headers.get(header)
      // Whether replies are compressed is for each server, or a proxy before it, to decide.
      const plain = value?.replace(/(, )?Accept-Encoding/i, '')
      if (plain) kept.headers[header] = this.#plain(plain)
    }
    if (status >= 400) {
      if (json) {
        kept.error = json.error
        kept.message = this.#plain(String(json.message))
      } else kept.body = this.#plain(text.slice(0, 300))
    } else if (json) kept.body = this.#shape(json)
    else if (/^(text|application\/json)/.test(headers.get('content-type') ?? 'text')) kept.body = this.#plain(text)
    this.said.set(name, kept)
  }

  /** Keeps a fact that is no reply. */
  note(name: string, value: unknown): void {
    this.said.set(name, { status: 0, headers: {}, body: this.#shape(value) })
  }

  async signUp(name: string, extra: Record<string, unknown> = {}): Promise<Someone> {
    const wanted = { handle: `${name}.test`, email: `${name}@example.com`, password: `${name}-password` }
    const { status, json } = await this.ask('com.atproto.server.createAccount', { body: { ...wanted, ...extra } })
    if (status !== 200) throw new Error(`createAccount of ${name}: ${JSON.stringify(json)}`)
    this.name(json.did, `<${name}>`)
    return { name, ...wanted, did: json.did, accessJwt: json.accessJwt, refreshJwt: json.refreshJwt }
  }

  /** A token as the server would sign one. */
  token(claims: Record<string, unknown>, { typ = 'at+jwt', exp = 3_600, secret = JWT_SECRET, aud = this.did } = {}) {
    const now = Math.floor(Date.now() / 1000)
    return new SignJWT(claims)
      .setProtectedHeader({ typ, alg: 'HS256' })
      .setAudience(aud)
      .setIssuedAt(now - 10)
      .setExpirationTime(now + exp)
      .sign(createSecretKey(Buffer.from(secret)))
  }

  get did(): string {
    return 'did:web:localhost'
  }

  #shape(value: unknown): unknown {
    if (typeof value === 'string') return this.#plain(value)
    if (Array.isArray(value)) return value.map(item => this.#shape(item))
    if (typeof value !== 'object' || value === null) return value
    const entries = Object.entries(value).map(([key, item]) => [this.#plain(key), this.#shape(item)] as const)
    return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)))
  }

  #plain(text: string): string {
    let plain = text
    for (const [value, name] of this.#names) plain = plain.replaceAll(value, name)
    return plain
      .replace(/\beyJ[\w-]+\.[\w-]+\.[\w-]+/g, '<jwt>')
      .replace(/(?<![\w-])[\w-]{86}(?![\w-])/g, '<signature>')
      .replace(/\b(bafy|bafk)[a-z2-7]{55}\b/g, '<$1…>')
      .replace(/\bdid:plc:[a-z2-7]{24}\b/g, '<did:plc>')
      .replace(/\bdid:key:z\w+/g, '<did:key>')
      .replace(/\bz(Q3s|Dna)[1-9A-HJ-NP-Za-km-z]{40,}/g, '<multikey>')
      .replace(/\b(?=[a-z]*[2-7])[2-7a-j][2-7a-z]{12}\b/g, '<tid>')
      .replace(/\b\d{4}-\d\d-\d\dT[\d:.]+Z/g, '<time>')
      .replace(/\b[a-z2-7]{5}-[a-z2-7]{5}\b/gi, '<code>')
      .replace(/\b[a-z2-7]{4}(-[a-z2-7]{4}){3}\b/g, '<app password>')
      .replace(/\b\d{13}::/g, '<ms>::')
  }
}

/** Null for what is called JSON and is none. */
function parsed(text: string) {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

/** A POST without a body. */
export const NONE = Symbol('no body')
export const ADMIN = `Basic ${Buffer.from(`admin:${ADMIN_PASSWORD}`).toString('base64')}`
