/** What a relay's answer to `com.atproto.sync.getHostStatus` means for us. Pure. */
import type { Answer } from '@millisky/server/fetch'

/**
 * - `unchecked`: not asked yet.
 * - `follows`: all we have told it, or it is on its way.
 * - `behind`: it follows, but is many events late.
 * - `stuck`: it has not taken an event since the last look, though there were some.
 * - `ahead`: it has seen events that we do not have; it takes nothing until our seq is above that.
 * - `unknown`: it has never heard of us.
 * - `offline`, `throttled`, `banned`: it says so.
 * - `silent`: it does not answer.
 * - `mute`: it answers, but not this question, as relays from before 2025 do.
 */
export const VERDICTS = [
  'unchecked',
  'follows',
  'behind',
  'stuck',
  'ahead',
  'unknown',
  'offline',
  'throttled',
  'banned',
  'silent',
  'mute',
] as const
export type Verdict = (typeof VERDICTS)[number]

export interface RelayFindings {
  verdict: Verdict
  severity: 'fine' | 'warning' | 'critical'
  /** Ours, up to which the relay has followed; null where it does not say. */
  seq: number | null
  /** What the relay calls us. */
  status: string | null
  /** Accounts of ours that it knows. */
  accounts: number | null
  /** What to do, for the operator. */
  advice: string | null
}

/** What came back. */
export type RelayAnswer =
  | { kind: 'status'; seq: number | null; status: string | null; accounts: number | null }
  | { kind: 'unknown' }
  | { kind: 'mute'; problem: string }
  | { kind: 'none'; problem: string }

/** An earlier look at a relay. */
export interface EarlierLook {
  seq: number | null
  ownSeq: number
  /** Our own seq when it was first seen without one of its own. */
  ownSeqAtFirst: number
}

/** Above this no seq is believed, nor taken by the setting. */
export const SEQ_MAX = 2 ** 48
/** A relay this many events late is told of, even while it moves. */
const BEHIND_EVENTS = 10_000
const TEXT_MAX = 200

/** Reads an answer; whatever a relay says ends as one of the kinds. */
export function asked({ status, bytes }: Pick<Answer, 'status' | 'bytes'>): RelayAnswer {
  const text = Buffer.from(bytes).toString('utf8')
  const json = parsed(text)
  const problem = `HTTP ${status} ${printable(text)}`.trim()
  if (status >= 200 && status < 300) {
    if (json === null) return { kind: 'mute', problem: 'an answer that is no JSON object' }
    const { seq, status, accountCount } = json
    return {
      kind: 'status',
      seq: Number.isSafeInteger(seq) && (seq as number) >= 0 ? (seq as number) : null,
      status: typeof status === 'string' ? printable(status) : null,
      accounts: Number.isSafeInteger(accountCount) ? (accountCount as number) : null,
    }
  }
  if (json?.error === 'HostNotFound') return { kind: 'unknown' }
  // Relays differ in how they say that: by name, or by words beside a 400 or 404 of some other name.
  if ((status === 400 || status === 404) && /host( was)? not found|unknown host/i.test(String(json?.message ?? ''))) {
    return { kind: 'unknown' }
  }
  if (status === 429 || status >= 500) {
    return status === 501 ? { kind: 'mute', problem } : { kind: 'none', problem }
  }
  return { kind: 'mute', problem }
}

/** @param before - An earlier look, long enough ago for what was there to have arrived. */
export function judge(answer: RelayAnswer, ownSeq: number, before: EarlierLook | null): RelayFindings {
  const nothing = { seq: null, status: null, accounts: null }
  switch (answer.kind) {
    case 'none':
      return { ...nothing, verdict: 'silent', severity: 'warning', advice: `It does not answer: ${answer.problem}` }
    case 'mute':
      return { ...nothing, verdict: 'mute', severity: 'fine', advice: `It does not tell: ${answer.problem}` }
    case 'unknown':
      return { ...nothing, verdict: 'unknown', severity: 'warning', advice: UNKNOWN }
    case 'status': {
      const { seq, status, accounts } = answer
      return { seq, status, accounts, ...judgeStatus(seq, status, ownSeq, before) }
    }
  }
}

type Judged = Pick<RelayFindings, 'verdict' | 'severity' | 'advice'>

function judgeStatus(seq: number | null, status: string | null, ownSeq: number, before: EarlierLook | null): Judged {
  // Whatever else is the matter: from here on every event would be refused as one it has seen.
  if (seq !== null && seq > ownSeq) return { verdict: 'ahead', severity: 'critical', advice: aheadAdvice(seq, ownSeq) }
  if (status === 'banned') return { verdict: 'banned', severity: 'critical', advice: BANNED }
  if (status === 'throttled') return { verdict: 'throttled', severity: 'warning', advice: THROTTLED }
  if (status === 'offline') return { verdict: 'offline', severity: 'warning', advice: OFFLINE }
  if (before !== null && seq === before.seq && before.ownSeq > (seq ?? before.ownSeqAtFirst)) {
    return { verdict: 'stuck', severity: 'warning', advice: STUCK }
  }
  if (seq !== null && ownSeq - seq > BEHIND_EVENTS) {
    return { verdict: 'behind', severity: 'warning', advice: `It follows, ${ownSeq - seq} events late.` }
  }
  return { verdict: 'follows', severity: 'fine', advice: null }
}

const UNKNOWN = 'It has never heard of this server. It is asked to crawl; if that stays so, see the log for its answer.'
const BANNED = 'It bans this server. Only its operator can change that.'
const THROTTLED = "It holds this server's accounts or events back. Its operator can raise the limits."
const OFFLINE =
  'It could not reach this server. It is asked to crawl; make sure that WebSockets pass the proxy in front (`millisky host check`).'
const STUCK =
  'It has taken none of the events since the last look. It is asked to crawl; make sure that WebSockets pass the proxy in front.'

function aheadAdvice(seq: number, ownSeq: number): string {
  if (seq > SEQ_MAX) return `It claims to have seen our event ${seq}, which cannot be. Ask its operator.`
  // Room for what it may have seen since, and for other relays.
  const floor = seq + 100_000
  return (
    `It has seen our event ${seq}, and our last is ${ownSeq}: this server was put back to an older state. Nothing new is taken ` +
    `until seqs are above that: restart with PDS_FIRST_SEQ=${floor}, then run \`millisky account announce --all\`.`
  )
}

function parsed(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : null
  } catch {
    return null
  }
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
const printable = (text: string) => text.slice(0, TEXT_MAX).replaceAll(/[\0-\x1f\x7f]+/g, ' ')
