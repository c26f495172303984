/**
 * The kinds of failure the whole project knows. Anything thrown that is none of these is a bug.
 *
 * - {@link Refused}: the caller's fault; carries the lexicon error name and a 4xx status.
 * - {@link Unavailable}: nobody's fault that a retry could not cure; 502, 503 or 504.
 * - {@link Malformed}: foreign bytes or text that do not decode. Shells translate it: a request becomes
 *   `Refused('InvalidRequest')`, an event becomes a counted verdict.
 */

/** The request cannot be served as asked. `error` is the name clients see, `message` is for people. */
export class Refused extends Error {
  readonly error: string
  readonly status: number
  readonly headers: Readonly<Record<string, string>> | undefined

  constructor(error: string, message: string, status = 400, headers?: Record<string, string>) {
    super(message)
    this.name = 'Refused'
    this.error = error
    this.status = status
    this.headers = headers
  }
}

/** Something this service depends on did not answer, or it is overloaded; asking again later may work. */
export class Unavailable extends Error {
  readonly error: string
  readonly status: 502 | 503 | 504
  /** Seconds after which a retry makes sense, if known. */
  readonly retryAfter: number | undefined

  constructor(error: string, message: string, status: 502 | 503 | 504 = 503, retryAfter?: number) {
    super(message)
    this.name = 'Unavailable'
    this.error = error
    this.status = status
    this.retryAfter = retryAfter
  }
}

/** Bytes or text from outside that are not what they should be. `at` is a byte offset where one is known. */
export class Malformed extends Error {
  readonly at: number | undefined

  constructor(message: string, at?: number) {
    super(at === undefined ? message : `${message} (at byte ${at})`)
    this.name = 'Malformed'
    this.at = at
  }
}
