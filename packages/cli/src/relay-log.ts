/** `millisky relay-log`: a Relay's log on disk, and what a replay of it proves. */
import {
  type Checkpoint,
  type CheckpointJson,
  type Comparison,
  EventList,
  fromJson,
  linkOf,
  Replay,
} from '@millisky/core/checkpoint'
import { peek } from '@millisky/core/event'
import { Follow, type FollowSettings } from '@millisky/server/follow'
import { checkSegments } from '@millisky/server/log/segment-recovery'
import { Command } from 'commander'
import { CallFailed, XrpcClient } from './xrpc-client.ts'

const PAGE = 1_000
/** A stream that is silent for this long has nothing more to say: the last events signed are withheld. */
const SILENT_MS = 3_000
const FAILURES_MAX = 3
const SHOWN = 20

export interface ReplayReport extends Comparison {
  checkpoints: number
  /** What was compared: events after `after`, up to `last`. */
  after: number
  last: number
  keys: string[]
  /** Stretches `after`–`last` of which nothing was ever signed. */
  holes: [number, number][]
}

export interface VerifyOptions {
  /** Cursor to begin at; 0 is the oldest there is. */
  from?: number
  /** Public keys that may have signed; default any. */
  keys?: readonly string[]
  silentMs?: number
  follow?: Partial<FollowSettings>
}

/**
 * Replays what a relay has signed and compares it, event by event.
 * @throws Malformed when the checkpoints themselves are not right: a wrong signature, key, or chain
 */
export async function verifyReplay(url: string, options: VerifyOptions = {}): Promise<ReplayReport> {
  const { from = 0, keys } = options
  const chain = await readChain(new XrpcClient(url), from)
  const report: ReplayReport = {
    checkpoints: 0,
    after: from,
    last: from,
    keys: [],
    holes: [],
    matched: 0,
    withheld: [],
    altered: [],
    unsigned: [],
  }
  const kept = chain.slice(await firstKept(url, chain))
  for (const [i, checkpoint] of kept.entries()) {
    const { key } = checkpoint
    if (keys && !keys.includes(key)) throw new Error(`the checkpoint up to ${checkpoint.last} is signed by ${key}`)
    if (!report.keys.includes(key)) report.keys.push(key)
    const before = kept[i - 1]
    if (before && linkOf(before, checkpoint) === 'hole') report.holes.push([before.last, checkpoint.after])
  }
  if (kept.length === 0) return report
  const after = Math.max(from, kept[0]!.after)
  await replay(url, after, kept, options, result => {
    report.matched += result.matched
    for (const what of ['withheld', 'altered', 'unsigned'] as const) report[what].push(...result[what])
  })
  return { ...report, checkpoints: kept.length, after, last: kept.at(-1)!.last }
}

async function readChain(client: XrpcClient, from: number): Promise<Checkpoint[]> {
  const chain: Checkpoint[] = []
  for (let cursor: number | undefined = from; cursor !== undefined; ) {
    const page: { checkpoints: CheckpointJson[]; cursor?: number } = await client.query(
      'net.millisky.relay.listCheckpoints',
      { cursor, limit: PAGE },
    )
    chain.push(...page.checkpoints.map(fromJson))
    cursor = page.cursor
  }
  return chain
}

/** The list of a checkpoint; null when its events are not kept any more. */
async function readList(url: string, checkpoint: Checkpoint): Promise<EventList | null> {
  const address = `${url.replace(/\/+$/, '')}/xrpc/net.millisky.relay.getCheckpointEvents?last=${checkpoint.last}`
  const reply = await fetch(address, { signal: AbortSignal.timeout(30_000) })
  if (reply.status === 404) return null
  if (!reply.ok) throw new CallFailed(reply.status, `HTTP ${reply.status}`, (await reply.text()).slice(0, 300))
  return new EventList(checkpoint, await reply.bytes())
}

/** Lists go from the oldest on, so the first that is there is found by halves. */
async function firstKept(url: string, chain: readonly Checkpoint[]): Promise<number> {
  let [low, high] = [0, chain.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if ((await readList(url, chain[middle]!)) !== null) high = middle
    else low = middle + 1
  }
  return low
}

/** Follows the stream through the checkpoints, with one list in memory at a time. */
async function replay(
  url: string,
  from: number,
  kept: readonly Checkpoint[],
  { silentMs = SILENT_MS, follow: settings = {} }: VerifyOptions,
  done: (result: Comparison) => void,
): Promise<void> {
  const stream = new URL(url)
  stream.protocol = stream.protocol === 'http:' ? 'ws:' : 'wss:'
  stream.pathname = '/xrpc/com.atproto.sync.subscribeRepos'
  const over = Promise.withResolvers<void>()
  const rest = [...kept]
  let current: Replay | null = null
  const open = async (): Promise<Replay> => {
    const list = current ? null : await readList(url, rest[0]!)
    if (!current && !list) throw new Error(`the list up to ${rest[0]!.last} went while it was compared`)
    return (current ??= new Replay(list!, from))
  }
  const finish = async () => {
    done((await open()).finish())
    current = null
    rest.shift()
  }
  let cursor = from
  let silence = setTimeout(over.resolve, silentMs + 10_000)
  const take = async (frame: Uint8Array) => {
    const { seq } = peek(frame)
    if (seq === null) return
    cursor = seq
    while (rest[0] && seq > rest[0].last) await finish()
    if (rest[0] && seq > rest[0].after) (await open()).take(seq, frame)
    if (rest[0]?.last === seq) await finish()
  }
  const follow = new Follow({
    url: stream,
    cursor: () => cursor,
    reach: { allowPrivate: true },
    userAgent: 'millisky-relay-log',
    settings,
    onOpen: () => heard(),
    onFrames: async frames => {
      // Fetching a list may take longer than the stream may be silent.
      clearTimeout(silence)
      for (const frame of frames) if (rest.length > 0) await take(frame)
      heard()
      if (rest.length === 0) over.resolve()
    },
    onEnd: ({ reason, detail, error, cause, failures }) => {
      if (reason === 'rejected') over.reject(cause)
      else if (error || failures >= FAILURES_MAX) over.reject(new Error(`${stream.host}: ${error ?? reason} ${detail}`))
    },
  })
  const heard = () => {
    clearTimeout(silence)
    silence = setTimeout(over.resolve, silentMs)
  }
  try {
    await over.promise
  } finally {
    clearTimeout(silence)
    await follow.stop()
  }
  while (rest.length > 0) await finish()
}

export function relayLogCommand(): Command {
  const command = new Command('relay-log').description("a Relay's log: what lies on disk, and what a replay proves")
  command
    .command('check <folder>')
    .description('compare every event of a log on disk with its checksum, while no relay writes to it')
    .action((folder: string) => {
      let [bad, count] = [0, 0]
      for (const { segment, events, problem } of checkSegments(folder)) {
        process.stdout.write(`${segment}  ${problem ?? `${events} events`}\n`)
        if (problem !== null) bad++
        count++
      }
      if (count === 0) throw new Error(`there is no log in ${folder}`)
      if (bad > 0) throw new Error(`${bad} segments are damaged`)
    })
  command
    .command('verify <url>')
    .description('replay what a relay has signed, and prove that nothing is left out or altered')
    .option('--cursor <seq>', 'begin after this seq; default the oldest that is kept', seqOf, 0)
    .option('--key <did:key>', 'the key that must have signed', (key, keys: string[] = []) => [...keys, key])
    .option('--strict', 'fail also when events are withheld, as those of accounts that were taken down', false)
    .option('--json', 'the report as JSON', false)
    .action(async (url: string, options: { cursor: number; key?: string[]; strict: boolean; json: boolean }) => {
      const report = await verifyReplay(url, { from: options.cursor, ...(options.key ? { keys: options.key } : {}) })
      process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : textOf(report))
      if (report.altered.length + report.unsigned.length > 0) throw new Error('the log is not as it was signed')
      if (options.strict && report.withheld.length > 0) throw new Error('events are withheld')
    })
  return command
}

function seqOf(text: string): number {
  if (!/^\d{1,16}$/.test(text)) throw new Error('a seq is a whole number')
  return Number(text)
}

function textOf(report: ReplayReport): string {
  const { checkpoints, keys, after, last, matched, withheld, altered, unsigned, holes } = report
  if (checkpoints === 0) return 'Nothing that is kept there was signed.\n'
  const lines = [`${checkpoints} checkpoints by ${keys.join(', ')} over the events after ${after} up to ${last}`]
  lines.push(`${matched} events are as they were signed`)
  const some = (seqs: number[]) => `${seqs.slice(0, SHOWN).join(', ')}${seqs.length > SHOWN ? ', …' : ''}`
  for (const [what, seqs] of Object.entries({ withheld, altered, 'not signed': unsigned })) {
    if (seqs.length > 0) lines.push(`${seqs.length} events are ${what}: ${some(seqs)}`)
  }
  for (const [from, to] of holes) lines.push(`nothing was signed of the events after ${from} up to ${to}`)
  return `${lines.join('\n')}\n`
}
