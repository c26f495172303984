import pg from 'pg'

const RETRY_MS = 1_000

/** Told what a notice says; null when notices may have been missed. */
export type Heard = (payload: string | null) => void

/** One connection that does nothing but hear notices, and comes back when it is lost. */
export class Listener {
  readonly #url: string
  readonly #heard = new Map<string, Set<Heard>>()
  #client: pg.Client | null = null
  #connecting: Promise<void> | null = null
  #retry: NodeJS.Timeout | null = null
  #closed = false

  constructor(url: string) {
    this.#url = url
  }

  /** Listens on a channel until the returned function is called. */
  async add(channel: string, heard: Heard): Promise<() => Promise<void>> {
    let all = this.#heard.get(channel)
    if (!all) this.#heard.set(channel, (all = new Set()))
    all.add(heard)
    this.#connecting ??= this.#connect()
    await this.#connecting
    await this.#client?.query(`listen ${pg.escapeIdentifier(channel)}`)
    return async () => {
      all.delete(heard)
      if (all.size > 0 || this.#heard.get(channel) !== all) return
      this.#heard.delete(channel)
      await this.#client?.query(`unlisten ${pg.escapeIdentifier(channel)}`).catch(() => {})
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    if (this.#retry) clearTimeout(this.#retry)
    await this.#connecting?.catch(() => {})
    await this.#client?.end().catch(() => {})
    this.#client = null
  }

  async #connect(): Promise<void> {
    const client = new pg.Client({ connectionString: this.#url, keepAlive: true, connectionTimeoutMillis: 10_000 })
    client.on('notification', ({ channel, payload }) => this.#tell(channel, payload ?? ''))
    // Both an error and a quiet end mean that notices may be missed from here on.
    client.on('error', () => this.#lost(client))
    client.on('end', () => this.#lost(client))
    try {
      await client.connect()
      for (const channel of this.#heard.keys()) await client.query(`listen ${pg.escapeIdentifier(channel)}`)
      this.#client = client
    } catch (error) {
      await client.end().catch(() => {})
      this.#again()
      throw error
    }
  }

  #lost(client: pg.Client): void {
    if (this.#client !== client) return
    this.#client = null
    void client.end().catch(() => {})
    this.#again()
  }

  #again(): void {
    if (this.#closed || this.#retry) return
    this.#retry = setTimeout(() => {
      this.#retry = null
      this.#connecting = this.#connect()
      this.#connecting.then(
        () => {
          for (const channel of this.#heard.keys()) this.#tell(channel, null)
        },
        () => {},
      )
    }, RETRY_MS)
    this.#retry.unref()
  }

  #tell(channel: string, payload: string | null): void {
    for (const heard of this.#heard.get(channel) ?? []) heard(payload)
  }
}
