/** "Test my PDS": follows a host for some seconds, verifies what comes and explains it, without taking the host up. */
import { setTimeout as systemSleep } from 'node:timers/promises'
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import { peek } from '@millisky/core/event'
import { type Did, isDid } from '@millisky/core/syntax'
import { type AccountState, REASON_TEXT, type Reason } from '@millisky/core/verify'
import type { FetchBytes, Reach } from '@millisky/server/fetch'
import { Follow, type FollowEnd } from '@millisky/server/follow'
import { type Identities, resolutionFailure } from '@millisky/server/identity'
import { assertPds } from './crawl.ts'
import { type HostName, parseHostname } from './hostname.ts'
import { type RejectReason, textOf } from './rejects.ts'
import { judgeGroup, Keys, type Outcome, type StatedIdentity } from './verifiers/job.ts'

const EVENTS_MAX = 200
const DIDS_MAX = 50
const FINDINGS_MAX = 50
/** The longest that the stream is listened to, and the silence after which there is no more to come. */
const LISTEN_MS = 8_000
const QUIET_MS = 2_000
const RUNNING_MAX = 4

export interface Step {
  name: 'hostname' | 'describeServer' | 'connect' | 'events'
  ok: boolean
  detail?: string
}

export interface Finding {
  seq?: number
  did?: string
  type?: string
  reason: RejectReason
  text: string
  detail?: string
  /** False when the event would be passed on all the same. */
  dropped: boolean
}

export interface CheckResult {
  hostname: string
  ok: boolean
  steps: Step[]
  eventsSeen: number
  eventsRight: number
  findings: Finding[]
}

export interface HostCheckParts {
  fetch: FetchBytes
  identities: Pick<Identities, 'resolveDid'>
  /** Domains that are banned here are not asked. @throws {Refused} */
  assertNotBanned(hostname: string): void
  reach: Reach
  userAgent: string
  insecure: boolean
  now: () => number
}

export class HostCheck {
  readonly #parts: HostCheckParts
  #running = 0

  constructor(parts: HostCheckParts) {
    this.#parts = parts
  }

  /** @throws {Refused} `HostBanned`, or 429 while too many checks run. What is wrong with the host is in the result. */
  async run(text: string): Promise<CheckResult> {
    if (this.#running >= RUNNING_MAX) {
      throw new Refused('RateLimitExceeded', 'Too many hosts are being checked', 429, { 'retry-after': '10' })
    }
    this.#running++
    try {
      return await this.#run(text)
    } finally {
      this.#running--
    }
  }

  async #run(text: string): Promise<CheckResult> {
    const { fetch, insecure, assertNotBanned } = this.#parts
    const result: CheckResult = { hostname: text, ok: false, steps: [], eventsSeen: 0, eventsRight: 0, findings: [] }
    let name: HostName
    try {
      name = parseHostname(text, { insecure })
      result.hostname = name.hostname
      result.steps.push({ name: 'hostname', ok: true })
    } catch (error) {
      return failed(result, 'hostname', error)
    }
    assertNotBanned(name.hostname)
    try {
      await assertPds(fetch, name)
      result.steps.push({ name: 'describeServer', ok: true })
    } catch (error) {
      return failed(result, 'describeServer', error)
    }
    const judged = new Judgement(result, name.hostname, this.#parts)
    const { isOpen, end } = await this.#listen(name, judged)
    const why = end === null ? undefined : [end.reason, end.error, end.detail].filter(Boolean).join(': ')
    result.steps.push(
      isOpen || why === undefined ? { name: 'connect', ok: isOpen } : { name: 'connect', ok: false, detail: why },
    )
    if (!isOpen) return result
    const isRight = end === null && !result.findings.some(({ dropped }) => dropped)
    const detail = why ?? (result.eventsSeen === 0 ? 'no events came; write a record and check again' : undefined)
    result.steps.push({ name: 'events', ok: isRight, ...(detail === undefined ? {} : { detail }) })
    result.ok = isRight
    return result
  }

  async #listen({ hostname, noTls }: HostName, judgement: Judgement) {
    const { promise: over, resolve: finish } = Promise.withResolvers<void>()
    let isOpen = false
    let end: FollowEnd | null = null
    let quiet: NodeJS.Timeout | undefined
    const follow = new Follow({
      url: `${noTls ? 'ws' : 'wss'}://${hostname}/xrpc/com.atproto.sync.subscribeRepos`,
      cursor: () => 0,
      reach: this.#parts.reach,
      userAgent: this.#parts.userAgent,
      onOpen: () => {
        isOpen = true
        quiet = setTimeout(finish, QUIET_MS)
      },
      onFrames: async frames => {
        clearTimeout(quiet)
        if (await judgement.take(frames)) finish()
        quiet = setTimeout(finish, QUIET_MS)
      },
      onEnd: ended => {
        if (ended.reason !== 'stopped') end = ended
        finish()
      },
    })
    const late = new AbortController()
    await Promise.race([over, systemSleep(LISTEN_MS, undefined, { signal: late.signal }).catch(() => {})])
    late.abort()
    judgement.isOver = true
    await follow.stop()
    clearTimeout(quiet)
    return { isOpen, end: end as FollowEnd | null }
  }
}

function failed(result: CheckResult, name: Step['name'], error: unknown): CheckResult {
  if (!(error instanceof Refused) && !(error instanceof Unavailable)) throw error
  result.steps.push({ name, ok: false, detail: error.message })
  return result
}

/** Verifies events in their order, by the strict rules and as if nothing were known of their accounts before. */
class Judgement {
  readonly #result: CheckResult
  readonly #hostname: string
  readonly #parts: Pick<HostCheckParts, 'identities' | 'now'>
  readonly #keys = new Keys(1_000)
  readonly #states = new Map<Did, AccountState>()
  readonly #identities = new Map<Did, StatedIdentity>()
  #seq = -1
  isOver = false

  constructor(result: CheckResult, hostname: string, parts: HostCheckParts) {
    this.#result = result
    this.#hostname = hostname
    this.#parts = parts
  }

  /** True when enough was seen. */
  async take(frames: readonly Uint8Array[]): Promise<boolean> {
    for (const frame of frames) {
      if (this.isOver || this.#result.eventsSeen >= EVENTS_MAX) return true
      await this.#judge(frame)
    }
    return this.#result.eventsSeen >= EVENTS_MAX
  }

  async #judge(frame: Uint8Array): Promise<void> {
    const result = this.#result
    let head: ReturnType<typeof peek>
    try {
      head = peek(frame)
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      result.eventsSeen++
      this.#find({}, 'undecodable', true, error.message)
      return
    }
    const { t, did, seq } = head
    if (t === '#info') return
    result.eventsSeen++
    const about = {
      ...(seq === null ? {} : { seq }),
      ...(did === null ? {} : { did }),
      ...(t === null ? {} : { type: t }),
    }
    if (seq === null) return this.#find(about, 'no-seq', true)
    if (seq <= this.#seq) return this.#find(about, 'seq-not-rising', true)
    this.#seq = seq
    if (did === null || !isDid(did)) return this.#find(about, 'bad-fields', true, 'no DID')
    const outcome = await this.#verdict(frame, did)
    if (outcome === null) return
    if (outcome.kind === 'admit') {
      this.#states.set(did, outcome.next)
      result.eventsRight++
      for (const note of outcome.notes) this.#find(about, note, false)
    } else if (outcome.kind === 'drop' || outcome.kind === 'retry-identity') {
      this.#find(about, outcome.reason, true, 'detail' in outcome ? outcome.detail : undefined)
    } else this.#find(about, outcome.kind, true, outcome.kind === 'undecodable' ? outcome.detail : undefined)
  }

  /** Null when it concerns an account too many to be looked up. */
  async #verdict(frame: Uint8Array, did: Did): Promise<Outcome | null> {
    if (!this.#identities.has(did) && this.#identities.size >= DIDS_MAX) return null
    const job = { frame, host: this.#hostname, policy: 'strict' as const }
    const judge = (identity: StatedIdentity) =>
      judgeGroup(
        { prior: this.#states.get(did) ?? null, jobs: [{ ...job, identity }] },
        this.#parts.now(),
        this.#keys,
      )[0]!
    const known = this.#identities.get(did) ?? (await this.#resolve(did, false))
    const outcome = judge(known)
    return outcome.kind === 'retry-identity' ? judge(await this.#resolve(did, true)) : outcome
  }

  async #resolve(did: Did, fresh: boolean): Promise<StatedIdentity> {
    let identity: StatedIdentity = { pds: null, key: null, fresh }
    try {
      const { pds, signingKey } = await this.#parts.identities.resolveDid(did, { fresh })
      identity = { pds, key: signingKey, fresh }
    } catch (error) {
      if (resolutionFailure(error) === null) throw error
    }
    this.#identities.set(did, { ...identity, fresh: false })
    return identity
  }

  #find(about: Partial<Finding>, reason: RejectReason, dropped: boolean, detail?: string): void {
    const { findings } = this.#result
    if (findings.length >= FINDINGS_MAX) return
    const text = REASON_TEXT[reason as Reason] ?? textOf(reason)
    findings.push({ ...about, reason, text, dropped, ...(detail === undefined ? {} : { detail }) })
  }
}
