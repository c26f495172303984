/** XRPC calls of the commands: what the command line can do is what the server's methods can do. */

/** What the server said instead of doing it. */
export class CallFailed extends Error {
  readonly status: number
  readonly error: string

  constructor(status: number, error: string, message: string) {
    super(`${error}: ${message}`)
    this.name = 'CallFailed'
    this.status = status
    this.error = error
  }
}

const TIMEOUT_MS = 30_000

/** One server, with the credentials of its administrator where it needs them. */
export class XrpcClient {
  readonly #origin: string
  readonly #authorization: string | undefined

  /** @param adminPassword - Sent as Basic, user `admin`. */
  constructor(url: string, adminPassword?: string) {
    // `localhost:2470` is a URL too, of a scheme that nobody speaks.
    if (!/^https?:$/.test(URL.parse(url)?.protocol ?? '')) {
      throw new Error(`a server is named by its URL, such as https://example.com, not ${JSON.stringify(url)}`)
    }
    this.#origin = url.replace(/\/+$/, '')
    if (adminPassword !== undefined) {
      this.#authorization = `Basic ${Buffer.from(`admin:${adminPassword}`).toString('base64')}`
    }
  }

  /** @param params - `undefined` is left out, an array is repeated. */
  query<T>(method: string, params: Record<string, string | number | readonly string[] | undefined> = {}): Promise<T> {
    const search = new URLSearchParams()
    for (const [name, value] of Object.entries(params)) {
      if (value === undefined) continue
      for (const one of Array.isArray(value) ? value : [value]) search.append(name, String(one))
    }
    return this.#call(`/xrpc/${method}${search.size > 0 ? `?${search}` : ''}`, {})
  }

  procedure<T>(method: string, body?: object): Promise<T> {
    const json =
      body === undefined ? {} : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }
    return this.#call(`/xrpc/${method}`, { method: 'POST', ...json })
  }

  /** Reads a route that is no method, such as those of other relays. */
  route<T>(path: string): Promise<T> {
    return this.#call(path, {})
  }

  async #call<T>(
    path: string,
    request: { method?: string; body?: string; headers?: Record<string, string> },
  ): Promise<T> {
    const headers = { ...request.headers, ...(this.#authorization ? { authorization: this.#authorization } : {}) }
    let reply: Response
    try {
      reply = await fetch(`${this.#origin}${path}`, {
        ...request,
        headers,
        signal: AbortSignal.timeout(TIMEOUT_MS),
      })
    } catch (error) {
      const cause = ((error as Error).cause as Error | undefined)?.message ?? (error as Error).message
      throw new Error(`${this.#origin} does not answer: ${cause}`)
    }
    const text = await reply.text()
    if (!reply.ok) {
      const { error = `HTTP ${reply.status}`, message = text.slice(0, 300) } = parsed(text)
      const isUnknown = reply.status === 401 && this.#authorization !== undefined
      throw new CallFailed(reply.status, error, isUnknown ? `${message} (is the admin password right?)` : message)
    }
    return (text === '' ? undefined : JSON.parse(text)) as T
  }
}

function parsed(text: string): { error?: string; message?: string } {
  try {
    return JSON.parse(text) as { error?: string; message?: string }
  } catch {
    return {}
  }
}
