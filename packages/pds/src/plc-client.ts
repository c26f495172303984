/** What a PDS asks of a did:plc directory besides documents: to register operations. */
import { Refused, Unavailable } from '@millisky/core/errors'
import type { PlcOperation } from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import type { FetchBytes } from '@millisky/server/fetch'

const TIMEOUT_MS = 10_000

/**
 * Submits a signed operation.
 *
 * @throws Refused InvalidRequest with the directory's words when it refuses
 * @throws Unavailable when it does not answer
 */
export async function submitOperation(
  directory: { plcUrl: string; fetch: FetchBytes },
  did: Did,
  operation: PlcOperation,
): Promise<void> {
  const answer = await directory.fetch(`${directory.plcUrl.replace(/\/+$/, '')}/${did}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(operation),
    timeoutMs: TIMEOUT_MS,
    bytesMax: 16_384,
  })
  if (answer.status >= 200 && answer.status < 300) return
  const text = Buffer.from(answer.bytes).toString('utf8').slice(0, 500)
  if (answer.status >= 500 || answer.status === 429) {
    throw new Unavailable('UpstreamFailure', `The did:plc directory answered ${answer.status}`, 502)
  }
  throw new Refused('InvalidRequest', `The did:plc directory refused: ${messageIn(text)}`)
}

function messageIn(text: string): string {
  try {
    const { message } = JSON.parse(text) as { message?: unknown }
    return typeof message === 'string' ? message : text
  } catch {
    return text
  }
}
