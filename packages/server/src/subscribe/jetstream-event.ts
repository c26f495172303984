/**
 * Events as Jetstream puts them: JSON, one message for each operation of a commit, with the record in it and without what proves it.
 *
 * Source: the documentation of github.com/bluesky-social/jetstream (version 1), and its clients `@skyware/jetstream` and `@atcute/jetstream`.
 */
import { readCar } from '@millisky/core/car'
import { decode } from '@millisky/core/cbor'
import type { Cid } from '@millisky/core/cid'
import { readAccount, readCommit, readIdentity } from '@millisky/core/event'
import { isObj, valueToJson } from '@millisky/core/json'
import { parseRepoPath } from '@millisky/core/syntax'
import type { Entry } from './digest.ts'

/** A message of Jetstream. */
export interface JetstreamEvent {
  readonly did: string
  /** Null for what is no commit. */
  readonly collection: string | null
  /** Its JSON, made when it is first asked for; null when its record cannot be put so. */
  readonly json: () => string | null
}

/** What Jetstream tells of an event; nothing of a `#sync`, as the original does. `micros` becomes `time_us`. */
export function jetstreamEvents({ kind, body }: Entry, micros: number): JetstreamEvent[] {
  if (body === null) return []
  try {
    if (kind === 'commit') return commitEvents(body, micros)
    if (kind === 'identity') {
      const { did, handle, seq, time } = readIdentity(body)
      const identity = { did, ...(handle === null ? {} : { handle }), seq, time }
      return [{ did, collection: null, json: () => JSON.stringify({ did, time_us: micros, kind, identity }) }]
    }
    if (kind === 'account') {
      const { did, active, status, seq, time } = readAccount(body)
      const account = { active, did, seq, ...(status === null ? {} : { status }), time }
      return [{ did, collection: null, json: () => JSON.stringify({ did, time_us: micros, kind, account }) }]
    }
  } catch {
    // Not as its kind should be: then there is nothing to tell. Consumers of the log's own form get its bytes.
  }
  return []
}

function commitEvents(body: Parameters<typeof readCommit>[0], micros: number): JetstreamEvent[] {
  const { repo: did, rev, blocks, ops } = readCommit(body)
  let read: Map<string, Uint8Array> | null = null
  const recordOf = (cid: Cid): string | null => {
    try {
      // The relay has checked the hashes of all blocks before it let the event into the log.
      read ??= new Map(readCar(blocks, { verify: false }).blocks.map(block => [block.cid.key, block.bytes]))
      const bytes = read.get(cid.key)
      const record = bytes && decode(bytes)
      return isObj(record) ? valueToJson(record) : null
    } catch {
      return null
    }
  }
  return ops.flatMap(({ action, path, cid }) => {
    const { collection, rkey } = parseRepoPath(path)
    const about = JSON.stringify({ rev, operation: action, collection, rkey })
    const json = () => {
      const record = cid === null ? null : recordOf(cid)
      if (action !== 'delete' && record === null) return null
      const what = record === null ? '' : `,"record":${record},"cid":"${cid}"`
      return `{"did":${JSON.stringify(did)},"time_us":${micros},"kind":"commit","commit":${about.slice(0, -1)}${what}}}`
    }
    return [{ did, collection, json }]
  })
}
