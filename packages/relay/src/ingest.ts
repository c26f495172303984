/**
 * From a host's socket to the log: each event waits for those of its account before it, is judged with what is known
 * then, and passes or is dropped with a reason.
 *
 * Order per account holds because at most one group of events of an account is with the verifiers. A host's cursor moves
 * only past events that have their verdict and, if admitted, are durable.
 */
import { Malformed } from '@millisky/core/errors'
import { accountEvent, decodeFrame, encodeFrame, peek, rewriteFrame } from '@millisky/core/event'
import { type Datetime, type Did, isDid } from '@millisky/core/syntax'
import { decodeTid } from '@millisky/core/tid'
import type { AccountState, Admitted as AdmitVerdict, Policy, Reason } from '@millisky/core/verify'
import { release } from '@millisky/server/receive-memory'
import type { Account, Accounts } from './accounts.ts'
import type { Appender } from './appender.ts'
import type { Host, Hosts } from './hosts.ts'
import type { Lookup } from './lookups.ts'
import { AccountQuota } from './quotas.ts'
import type { RejectReason } from './rejects.ts'
import { statusOf } from './status.ts'
import type { HostId } from './store/store.ts'
import type { Throttle } from './throttle.ts'
import type { Outcome, StatedIdentity } from './verifiers/job.ts'
import type { Verifiers } from './verifiers.ts'
import type { Slot } from './window.ts'

/** Events of one account that are judged in one go. */
const GROUP_EVENTS = 16
const GROUP_BYTES = 256 * 1024
/** A status is a word; a longer text is not passed on. */
const STATUS_LENGTH_MAX = 64
/** An account that is said to be inactive and yet sends is asked about this often. */
const ASK_AGAIN_MS = 5 * 60_000
const PASSED_ON: ReadonlySet<string> = new Set(['#commit', '#sync', '#identity', '#account'])
/** A commit with one of these breaks the strict rules. */
const UNCLEAN: ReadonlySet<Reason> = new Set<Reason>([
  'too-big-flag',
  'rebase-flag',
  'record-missing',
  'op-without-prev',
  'no-prev-data',
  'tree-incomplete',
  'inversion-mismatch',
])

/** A frame that is none: its connection is to be closed. */
export class BrokenFrame extends Error {}

/** One event under way. */
export interface Incoming {
  host: Host
  /** Null for events of our own making. */
  slot: Slot | null
  frame: Uint8Array
  t: string
  /** An identity was fetched for this very event. */
  isFresh: boolean
  /** Of an `#identity`: what was known before is forgotten. */
  isExpired: boolean
}

/** How much may be under way before sockets are not read for a while. */
export interface IngestLimits {
  hostEvents: number
  hostBytes: number
  /** Events of one host that wait for identities. */
  hostLookups: number
  /** Of all hosts together; a host always has a few of its own. */
  events: number
  bytes: number
}

/** What each host may have under way however much there is of others. */
const HOST_SHARE = 5
const HOST_SHARE_BYTES = 128 * 1024
/** A frame that waits for long is copied out of a receive buffer so many times its size. */
const BUFFER_SHARE = 2

export const INGEST_LIMITS: Readonly<IngestLimits> = {
  hostEvents: 2_000,
  hostBytes: 16 * 1_048_576,
  hostLookups: 40,
  events: 3_000,
  bytes: 64 * 1_048_576,
}

export interface IngestParts {
  hosts: Hosts
  accounts: Accounts<Incoming>
  lookup: Lookup
  verifiers: Verifiers
  appender: Appender<Incoming>
  limits?: Partial<IngestLimits>
  now: () => number
  throttle: Throttle
  /** An account sends more commits than one may. */
  onFlood(account: Account<Incoming>): void
  /** Whether an #account or #identity, as it would be passed on, is known to be in the log already. */
  isRepeated?(frame: Uint8Array): boolean
  /** Asks an account's host whether it is active after all; null when there is no answer. */
  isActive(host: Host, did: Did): Promise<boolean | null>
  /** A frame that was taken turned out to be none. */
  onBroken(host: Host, detail: string): void
  onInfo(host: Host, frame: Uint8Array): void
  onFailed(error: unknown, about: { host: string; did: string }): void
  /** The store failed where nothing can go on without it. */
  onFatal(error: unknown): void
  observer?: {
    received?(host: Host, t: string): void
    admitted?(host: Host, t: string, notes: readonly Reason[]): void
    rejected?(host: Host, reason: RejectReason): void
    /** A group of events came back from the verifiers, so many milliseconds after it went there. */
    verified?(ms: number): void
    /** An account was heard for the first time. */
    discovered?(): void
  }
}

/** The frame in memory of its own, where else a small one would keep much more from being freed while it waits. */
function owned(frame: Uint8Array): Uint8Array {
  if (frame.buffer.byteLength <= BUFFER_SHARE * frame.byteLength) return frame
  const copy = new Uint8Array(frame)
  release(frame)
  return copy
}

/**
 * Puts an event behind those that wait. What the account's own host says goes before what others say of it, or they could
 * make it wait; only the first in line, which may be under way, keeps its place.
 */
function place({ waiting, hostId }: Account<Incoming>, event: Incoming): void {
  let at = waiting.length
  if (event.host.id === hostId) while (at > 1 && waiting[at - 1]!.host.id !== hostId) at--
  if (at === waiting.length) waiting.push(event)
  else waiting.splice(at, 0, event)
}

export class Ingest {
  readonly #parts: IngestParts
  readonly #limits: IngestLimits
  #bytes = 0
  #events = 0
  #full: (() => void)[] = []
  #idle: (() => void)[] = []

  constructor(parts: IngestParts) {
    this.#parts = parts
    this.#limits = { ...INGEST_LIMITS, ...parts.limits }
  }

  /** Events and bytes under way. */
  get load(): { events: number; bytes: number } {
    return { events: this.#events, bytes: this.#bytes }
  }

  /**
   * Takes frames of a host's stream in their order. A promise means: no more before it resolves.
   * @throws BrokenFrame at the first that is none
   */
  take(host: Host, frames: readonly Uint8Array[]): Promise<void> | undefined {
    if (!this.#parts.throttle.take(host, frames.length)) return this.#takeSlowly(host, frames)
    let bytes = 0
    for (const frame of frames) bytes += frame.length
    this.#parts.throttle.weigh(host, bytes)
    for (const [i, frame] of frames.entries()) {
      if (!this.#hasRoom(host)) return this.#takeAsFits(host, frames.slice(i))
      this.#accept(host, frame)
    }
    return this.#hasRoom(host) ? undefined : this.#room(host)
  }

  /** Takes frames as there is room: very many small ones come in one go. */
  async #takeAsFits(host: Host, frames: readonly Uint8Array[]): Promise<void> {
    for (const frame of frames) {
      if (!this.#hasRoom(host)) await this.#room(host)
      this.#accept(host, frame)
    }
    if (!this.#hasRoom(host)) await this.#room(host)
  }

  /** Takes frames one by one, as the host's limits allow. What is left when it is disconnected comes again. */
  async #takeSlowly(host: Host, frames: readonly Uint8Array[]): Promise<void> {
    const { throttle } = this.#parts
    for (const frame of frames) {
      while (!throttle.take(host, 1)) if (!(await throttle.pause(host))) return
      throttle.weigh(host, frame.length)
      this.#accept(host, frame)
      if (!this.#hasRoom(host)) await this.#room(host)
    }
  }

  /** Resolves when nothing is under way. */
  async idle(): Promise<void> {
    while (this.#events > 0) await new Promise<void>(resolve => this.#idle.push(resolve))
  }

  /** Says here and now that an account may be served or not, whatever its host says. Resolves when it is durable. */
  async announce(account: Account<Incoming>, local: string | null): Promise<void> {
    account.state = { ...account.state, local }
    if (account.durable) account.durable = { ...account.durable, local }
    const frame = encodeFrame(accountEvent({ did: account.did, ...statusOf(account.state) }, this.#time()))
    const { state, hostId } = account
    await new Promise<void>(done => this.#parts.appender.add({ frame, account, state, hostId, done }))
  }

  #time(): Datetime {
    return new Date(this.#parts.now()).toISOString() as Datetime
  }

  // Taking frames

  #accept(host: Host, frame: Uint8Array): void {
    const found = this.#read(host, frame)
    if (found === null) release(frame)
    else this.#enqueue(found.did, { host, slot: found.slot, frame, t: found.t, isFresh: false, isExpired: false })
  }

  /** What there is to queue; null when the frame is done with. */
  #read(host: Host, frame: Uint8Array): { did: Did; slot: Slot; t: string } | null {
    let head: ReturnType<typeof peek>
    try {
      head = peek(frame)
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      this.#note(host, 'undecodable', null, null, error.message)
      throw new BrokenFrame(error.message)
    }
    const { t, did, seq } = head
    host.eventsSeen++
    host.lastEventAt = this.#parts.now()
    this.#parts.observer?.received?.(host, t ?? '')
    if (t === '#info') {
      this.#parts.onInfo(host, frame)
      return null
    }
    if (seq !== null && Number.isSafeInteger(seq) && seq >= 0) {
      if (seq <= host.socketSeq) {
        this.#note(host, 'seq-not-rising', seq, did)
        return null
      }
      if (host.socketSeq < 0 && host.resumeAt !== null && seq < host.resumeAt) {
        this.#parts.hosts.noteGap(host, `its seq went back from ${host.resumeAt} to ${seq}: its events begin anew`)
      }
      if (host.openGap !== null) this.#parts.hosts.closeGap(host, seq)
      host.socketSeq = host.resumeAt = seq
    } else if (t !== null && PASSED_ON.has(t)) {
      this.#note(host, 'no-seq', null, did)
      return null
    }
    if (t === null || !PASSED_ON.has(t)) {
      this.#note(host, 'unknown-op', seq, did, t ?? `op ${head.op}`)
      if (seq !== null && host.socketSeq === seq) this.#advance(host, host.window.add(seq))
      return null
    }
    const slot = host.window.add(seq!)
    if (did === null || !(this.#parts.accounts.has(did) || isDid(did))) {
      this.#note(host, 'bad-fields', seq, did?.slice(0, 100) ?? null, 'no DID')
      this.#advance(host, slot)
      return null
    }
    return { did, slot, t }
  }

  #enqueue(did: Did, event: Incoming): void {
    const { host, frame } = event
    host.events++
    host.bytes += frame.length
    this.#events++
    this.#bytes += frame.length
    const account = this.#parts.accounts.get(did)
    place(account, event)
    if (account.isBusy) {
      if (host.lookups > 0) event.frame = owned(frame)
      return
    }
    account.isBusy = true
    if (account.isLoaded) this.#next(account)
    else this.#parts.accounts.load(account).then(() => this.#next(account), this.#parts.onFatal)
  }

  #hasRoom(host: Host): boolean {
    const { hostEvents, hostBytes, hostLookups } = this.#limits
    const fits = host.events < hostEvents && host.bytes < hostBytes && host.lookups < hostLookups
    return fits && !this.#isFull(host)
  }

  /** All hosts together have too much under way for more of this one. */
  #isFull(host: Host): boolean {
    const { bytes, events } = this.#limits
    if (this.#bytes >= bytes && host.bytes >= HOST_SHARE_BYTES) return true
    return this.#events >= events && host.events >= HOST_SHARE
  }

  async #room(host: Host): Promise<void> {
    this.#parts.throttle.note(host, host.lookups >= this.#limits.hostLookups ? 'identities' : 'intake')
    while (!this.#hasRoom(host)) {
      await new Promise<void>(resolve => {
        host.waiters.push(resolve)
        if (this.#isFull(host)) this.#full.push(resolve)
      })
    }
  }

  #wake(host: Host): void {
    if (host.waiters.length > 0 && this.#hasRoom(host)) for (const wake of host.waiters.splice(0)) wake()
    const { events, bytes } = this.#limits
    if (this.#full.length > 0 && this.#bytes < bytes && this.#events < events) {
      for (const wake of this.#full.splice(0)) wake()
    }
  }

  // One account's events

  /** Looks at the first event that waits. The account is busy. */
  #next(account: Account<Incoming>): void {
    let event = account.waiting[0]
    for (
      let over = event && this.#overQuota(account, event);
      event && over;
      over = event && this.#overQuota(account, event)
    ) {
      account.waiting.shift()
      this.#reject(account, event, over)
      event = account.waiting[0]
    }
    if (event === undefined) {
      account.isBusy = false
      return
    }
    const { lookup } = this.#parts
    if (event.t === '#identity' && !event.isExpired) {
      event.isExpired = true
      lookup.expire(account.did)
      this.#resolve(account, event)
      return
    }
    const identity = lookup.peek(account.did)
    if (identity) this.#submit(account, identity)
    else this.#resolve(account, event)
  }

  /** Why nobody is even asked who the account is. */
  #overQuota(account: Account<Incoming>, event: Incoming): RejectReason | null {
    const { throttle, now } = this.#parts
    const { host, t } = event
    if (account.hostId === null && !throttle.hasRoom(host)) {
      throttle.refuse(host, account.did)
      return 'account-quota'
    }
    if (t !== '#identity' || event.isExpired || account.hostId === host.id || host.isTrusted) return null
    return host.strangers.take(now()) ? null : 'identity-rate'
  }

  /** Asks who the account is, then goes on. */
  #resolve(account: Account<Incoming>, event: Incoming, options: { fresh?: boolean } = {}): void {
    const { host } = event
    const isHint = event.t === '#identity'
    host.lookups++
    event.frame = owned(event.frame)
    this.#parts.lookup
      .resolve(account.did, { host, fresh: options.fresh ?? false, isPatient: !isHint })
      .then(identity => {
        host.lookups--
        this.#wake(host)
        if (identity !== null || isHint) this.#submit(account, identity)
        else this.#giveUp(account)
      }, this.#parts.onFatal)
  }

  /** Nobody could say who the account is: nothing that waits may pass. */
  #giveUp(account: Account<Incoming>): void {
    for (const event of account.waiting.splice(0)) this.#reject(account, event, 'identity-unavailable')
    account.isBusy = false
  }

  #submit(account: Account<Incoming>, identity: StatedIdentity | null): void {
    const { waiting } = account
    const first = waiting[0]!
    let count = 1
    let bytes = first.frame.length
    while (count < waiting.length && count < GROUP_EVENTS && first.t !== '#identity' && !first.isFresh) {
      const event = waiting[count]!
      bytes += event.frame.length
      if (event.t === '#identity' || event.isFresh || bytes > GROUP_BYTES || event.host !== first.host) break
      count++
    }
    const events = count === waiting.length ? waiting : waiting.slice(0, count)
    account.waiting = count === waiting.length ? [] : waiting.slice(count)
    const { hostname, policy } = first.host.record
    const since = performance.now()
    const shared = identity && first.isFresh ? { ...identity, fresh: true } : identity
    this.#parts.verifiers.submit({
      account: account.did,
      from: first.host.id,
      prior: account.state,
      jobs: events.map(({ frame }) => ({ frame, host: hostname, policy: policy as Policy, identity: shared })),
      done: outcomes => {
        this.#parts.observer?.verified?.(performance.now() - since)
        this.#judged(account, events, outcomes)
      },
    })
  }

  #judged(account: Account<Incoming>, events: Incoming[], outcomes: Outcome[]): void {
    for (const [i, outcome] of outcomes.entries()) {
      const event = events[i]!
      switch (outcome.kind) {
        case 'admit':
          this.#admit(account, event, outcome)
          break
        case 'drop':
          if (outcome.reason === 'account-inactive' && this.#doubtsInactivity(account, event)) {
            this.#askWhetherActive(account, events.slice(i))
            return
          }
          this.#reject(account, event, outcome.reason, outcome.detail)
          break
        case 'retry-identity':
          account.waiting = [...events.slice(i), ...account.waiting]
          event.isFresh = true
          this.#resolve(account, event, { fresh: true })
          return
        case 'undecodable':
          this.#reject(account, event, 'undecodable', outcome.detail)
          this.#parts.onBroken(event.host, outcome.detail)
          break
        default:
          this.#parts.onFailed(new Error(outcome.detail), { host: event.host.hostname, did: account.did })
          this.#reject(account, event, 'failed')
      }
    }
    if (outcomes.length < events.length) account.waiting = [...events.slice(outcomes.length), ...account.waiting]
    this.#next(account)
  }

  #admit(account: Account<Incoming>, event: Incoming, { notes, next }: AdmitVerdict): void {
    const { host, t } = event
    const { local } = account.state
    const state: AccountState = { ...next, local }
    const frame = this.#toEmit(account.did, state, event, notes)
    // What was said here may have been said while the event was with the verifiers.
    const wrong: RejectReason | null =
      local !== null && (t === '#commit' || t === '#sync')
        ? 'account-blocked'
        : (next.status?.length ?? 0) > STATUS_LENGTH_MAX
          ? 'bad-fields'
          : (t === '#account' || t === '#identity') && this.#parts.isRepeated?.(frame)
            ? 'repeated'
            : null
    if (wrong !== null) {
      this.#reject(account, event, wrong)
      return
    }
    const hostId = t === '#identity' ? account.hostId : host.id
    const over = this.#takeQuota(account, event, hostId)
    if (over !== null) {
      this.#reject(account, event, over)
      return
    }
    const isNewcomer = hostId !== account.hostId
    if (isNewcomer) {
      host.newcomers++
      host.refused.delete(account.did)
      if (account.hostId === null) this.#parts.observer?.discovered?.()
    }
    account.state = state
    account.hostId = hostId
    host.eventsAdmitted++
    host.conduct.admitted++
    if (t === '#commit' && state.rev !== null) {
      host.lagMs = Math.max(0, Math.round(this.#parts.now() - decodeTid(state.rev).micros / 1_000))
    }
    if (t === '#commit') this.#parts.hosts.noteCommit(host, !notes.some(note => UNCLEAN.has(note)))
    this.#parts.observer?.admitted?.(host, t, notes)
    const done = () => {
      if (isNewcomer) host.newcomers--
      this.#end(event)
    }
    this.#parts.appender.add({ frame, account, state, hostId, done })
  }

  /** Charges host and account for an event that is right; the reason if one of them has nothing left. */
  #takeQuota(account: Account<Incoming>, { host, t }: Incoming, hostId: HostId | null): RejectReason | null {
    const { throttle, now, onFlood } = this.#parts
    if (hostId !== host.id) return null
    if (hostId !== account.hostId && !throttle.hasRoom(host)) {
      throttle.refuse(host, account.did)
      return 'account-quota'
    }
    // A trusted host limits its own accounts.
    if (host.isTrusted) return null
    account.quota ??= new AccountQuota(now())
    if (account.quota.take(t, now())) return null
    if (t === '#commit') onFlood(account)
    return 'account-rate'
  }

  /** What goes out differs from what came in only where this relay must speak for itself. */
  #toEmit(did: Did, state: AccountState, { frame, t }: Incoming, notes: readonly Reason[]): Uint8Array {
    if (t === '#account' && state.local !== null) return rewriteFrame(decodeFrame(frame), { ...statusOf(state) })
    if (t !== '#identity') return frame
    const decoded = decodeFrame(frame)
    const { handle } = decoded.body
    if (handle === undefined) return frame
    // A handle is passed on when the account's own host says it, and the DID document does too.
    const known = this.#parts.lookup.handle(did)
    const isBelieved = notes.length === 0 && (handle === known || handle === 'handle.invalid')
    return isBelieved ? frame : rewriteFrame(decoded, { handle: undefined })
  }

  #doubtsInactivity({ hostId, askedAt, state }: Account<Incoming>, { host, t }: Incoming): boolean {
    return t !== '#account' && hostId === host.id && !state.active && this.#parts.now() - askedAt > ASK_AGAIN_MS
  }

  /** Its own host sends for an account that it said was inactive: perhaps the word that it is back was lost. */
  #askWhetherActive(account: Account<Incoming>, events: Incoming[]): void {
    const { host } = events[0]!
    account.askedAt = this.#parts.now()
    account.waiting = [...events, ...account.waiting]
    host.lookups++
    this.#parts.isActive(host, account.did).then(isActive => {
      host.lookups--
      this.#wake(host)
      if (isActive) {
        const state = { ...account.state, active: true, status: null }
        const frame = encodeFrame(accountEvent({ did: account.did, active: true }, this.#time()))
        account.state = state
        this.#parts.appender.add({ frame, account, state, hostId: account.hostId })
      }
      this.#next(account)
    }, this.#parts.onFatal)
  }

  // The end of an event

  #reject(account: Account<Incoming>, event: Incoming, reason: RejectReason, detail?: string): void {
    const { host, slot } = event
    this.#note(host, reason, slot?.seq ?? null, account.did, detail)
    if (event.t === '#commit' && UNCLEAN.has(reason as Reason)) this.#parts.hosts.noteCommit(host, false)
    this.#end(event)
  }

  #note(host: Host, reason: RejectReason, seq: number | null, did: string | null, detail?: string): void {
    this.#parts.hosts.noteReject(host, { seq, did, reason, detail: detail ?? null })
    this.#parts.observer?.rejected?.(host, reason)
  }

  #end({ host, slot, frame }: Incoming): void {
    host.events--
    host.bytes -= frame.length
    this.#events--
    this.#bytes -= frame.length
    release(frame)
    if (slot) this.#advance(host, slot)
    this.#wake(host)
    if (this.#events === 0) for (const wake of this.#idle.splice(0)) wake()
  }

  #advance(host: Host, slot: Slot): void {
    if (host.window.done(slot)) host.isUnsaved = true
  }
}
