/**
 * From a thrown error to what the client sees: the only place where that is decided.
 *
 * Source: atproto.com/specs/xrpc; names and messages as the reference gives them.
 */
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'

export interface Envelope {
  readonly status: number
  readonly error: string
  readonly message: string
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** Neither the caller's fault nor an outage: to be logged whole and looked into. */
  readonly isBug: boolean
}

/** What clients are told of an error. The text of a bug is not passed on. */
export function envelopeOf(error: unknown): Envelope {
  if (error instanceof Refused) return { ...pick(error), headers: error.headers, isBug: false }
  if (error instanceof Unavailable) {
    const headers = error.retryAfter === undefined ? undefined : { 'retry-after': String(Math.ceil(error.retryAfter)) }
    return { ...pick(error), headers, isBug: false }
  }
  if (error instanceof Malformed) return { status: 400, error: 'InvalidRequest', message: error.message, isBug: false }
  return foreignEnvelope(error) ?? BUG
}

const BUG: Envelope = { status: 500, error: 'InternalServerError', message: 'Internal Server Error', isBug: true }

function pick({ status, error, message }: Refused | Unavailable) {
  return { status, error, message }
}

/** Names of what the HTTP framework itself refuses. */
const NAMES: Readonly<Record<number, string>> = {
  401: 'AuthenticationRequired',
  403: 'Forbidden',
  404: 'NotFound',
  405: 'MethodNotAllowed',
  406: 'NotAcceptable',
  413: 'PayloadTooLarge',
  415: 'UnsupportedMediaType',
  429: 'RateLimitExceeded',
}

/** Of a media type that is none. */
const NO_TYPE: Envelope = {
  status: 400,
  error: 'InvalidRequest',
  message: 'Request encoding (Content-Type) required but not provided',
  isBug: false,
}

function foreignEnvelope(error: unknown): Envelope | undefined {
  if (!(error instanceof Error) || !('code' in error) || !('statusCode' in error)) return undefined
  const { code, statusCode: status } = error
  if (typeof code !== 'string' || !code.startsWith('FST_') || typeof status !== 'number') return undefined
  if (status < 400 || status >= 500) return undefined
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE') return NO_TYPE
  return { status, error: NAMES[status] ?? 'InvalidRequest', message: error.message, isBug: false }
}
