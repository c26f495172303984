/** What callers are told when a service refuses, fails or does not answer. Source: pds.md #59. */
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import type { Exchange } from '@millisky/server/fetch'
import { answeredHeaders } from './headers.ts'
import { decode, readAll } from './reading.ts'

const ERROR_BYTES_MAX = 64 * 1024
const MESSAGE_LENGTH_MAX = 2_000

/** Names for services that do not name their errors. */
const NAMES: Readonly<Record<number, readonly [string, string]>> = {
  400: ['InvalidRequest', 'Invalid Request'],
  401: ['AuthenticationRequired', 'Authentication Required'],
  403: ['Forbidden', 'Forbidden'],
  404: ['XRPCNotSupported', 'XRPC Not Supported'],
  406: ['NotAcceptable', 'Not Acceptable'],
  413: ['PayloadTooLarge', 'Payload Too Large'],
  415: ['UnsupportedMediaType', 'Unsupported Media Type'],
  429: ['RateLimitExceeded', 'Rate Limit Exceeded'],
  501: ['MethodNotImplemented', 'Method Not Implemented'],
  502: ['UpstreamFailure', 'Upstream Failure'],
  503: ['NotEnoughResources', 'Not Enough Resources'],
  504: ['UpstreamTimeout', 'Upstream Timeout'],
}

/** The error for an answer that is none of success: the service's own, but for failures inside it. Takes the body. */
export async function refusalOf(exchange: Exchange): Promise<Refused | Unavailable> {
  const { headers } = exchange
  // A redirect is not followed: where it leads is not what the caller has asked for.
  if (exchange.status < 400) {
    exchange.body.destroy()
    return unreachable(new Error(`redirected by status ${exchange.status}`)) as Unavailable
  }
  const said = await readError(exchange)
  const status = exchange.status === 500 ? 502 : exchange.status > 599 ? 502 : exchange.status
  const [name, text] = NAMES[status] ?? (status < 500 ? NAMES[400]! : NAMES[502]!)
  // That a service is broken inside is told as such; what else it names keeps its name.
  const isInside = exchange.status === 500 && (said.error === undefined || said.error === 'InternalServerError')
  const error = isInside ? name : (said.error ?? name)
  return new Refused(error, said.message ?? text, status, answeredHeaders(headers, false))
}

async function readError({ headers, body }: Exchange): Promise<{ error?: string; message?: string }> {
  const type = headers['content-type']
  if (type !== undefined && !/^application\/(?:[\w.-]+\+)?json\b/i.test(type)) {
    body.destroy()
    return {}
  }
  try {
    const bytes = await readAll(body, ERROR_BYTES_MAX)
    const encoding = headers['content-encoding']
    const said: unknown = JSON.parse((await decode(bytes, encoding, ERROR_BYTES_MAX)).toString())
    if (typeof said !== 'object' || said === null) return {}
    const { error, message } = said as { error?: unknown; message?: unknown }
    return {
      ...(typeof error === 'string' && /^[\x21-\x7e]{1,128}$/.test(error) ? { error } : {}),
      ...(typeof message === 'string' && message !== '' ? { message: message.slice(0, MESSAGE_LENGTH_MAX) } : {}),
    }
  } catch {
    // An error that cannot be read is still one.
    return {}
  }
}

/** The error for no answer at all. What the caller itself did wrong stays what it is. */
export function unreachable(cause: unknown): Error {
  const isTarget = cause instanceof Refused && (cause.error === 'ForbiddenAddress' || cause.error === 'InvalidUrl')
  if ((cause instanceof Refused && !isTarget) || cause instanceof Malformed) return cause
  const failure = new Unavailable('UpstreamFailure', 'Upstream service unreachable', 502)
  failure.cause = cause
  return failure
}
