/** What a PDS asks of a did:plc directory besides documents: the operation in force, and to register the next one. */
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import { type PlcOperation, parsePlcOperation } from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import type { Answer, FetchBytes, FetchOptions } from '@millisky/server/fetch'

const TIMEOUT_MS = 10_000
const OPERATION_BYTES_MAX = 32_768

export interface PlcDirectory {
  plcUrl: string
  fetch: FetchBytes
}

/**
 * Submits a signed operation.
 *
 * @throws Refused InvalidRequest with the directory's words when it refuses
 * @throws Unavailable when it does not answer
 */
export async function submitOperation(directory: PlcDirectory, did: Did, operation: PlcOperation): Promise<void> {
  await ask(directory, did, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(operation),
  })
}

/**
 * The operation in force, which may be a tombstone.
 *
 * @throws Refused InvalidRequest when the directory does not know the DID
 * @throws Unavailable when it does not answer, or not sensibly
 */
export async function lastOperation(directory: PlcDirectory, did: Did): Promise<PlcOperation> {
  const { bytes } = await ask(directory, `${did}/log/last`, {})
  try {
    return parsePlcOperation(JSON.parse(Buffer.from(bytes).toString('utf8')))
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof Malformed)) throw error
    throw new Unavailable('UpstreamFailure', `The did:plc directory answered no operation for ${did}`, 502)
  }
}

async function ask({ plcUrl, fetch }: PlcDirectory, path: string, options: FetchOptions): Promise<Answer> {
  const url = `${plcUrl.replace(/\/+$/, '')}/${path}`
  const answer = await fetch(url, { timeoutMs: TIMEOUT_MS, bytesMax: OPERATION_BYTES_MAX, ...options })
  if (answer.status >= 200 && answer.status < 300) return answer
  if (answer.status >= 500 || answer.status === 429) {
    throw new Unavailable('UpstreamFailure', `The did:plc directory answered ${answer.status}`, 502)
  }
  const text = Buffer.from(answer.bytes).toString('utf8').slice(0, 500)
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
