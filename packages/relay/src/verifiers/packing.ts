/**
 * Jobs and outcomes as bytes, to be handed from thread to thread without being cloned object by object.
 *
 * Texts that many jobs share (hosts, statuses) go into a table beside the bytes; index 0 is null. Both ends are this
 * process, so nothing is checked.
 */
import type { Tid } from '@millisky/core/syntax'
import { type AccountState, REASONS, type Reason } from '@millisky/core/verify'
import type { Group, Job, Outcome, StatedIdentity } from './job.ts'

const reasonIndex = new Map<Reason, number>(REASONS.map((reason, i) => [reason, i]))
const KINDS = ['admit', 'drop', 'retry-identity', 'undecodable', 'failed'] as const
const DETAIL_LENGTH_MAX = 500

/** Writes into a buffer that is known to be large enough. */
class Writer {
  readonly buffer: Buffer
  at = 0

  constructor(buffer: Buffer) {
    this.buffer = buffer
  }

  u8(value: number): void {
    this.buffer[this.at++] = value
  }

  u16(value: number): void {
    this.buffer[this.at++] = value >> 8
    this.buffer[this.at++] = value
  }

  u32(value: number): void {
    this.u16(value >>> 16)
    this.u16(value & 0xffff)
  }

  bytes(bytes: Uint8Array): void {
    this.buffer.set(bytes, this.at)
    this.at += bytes.length
  }

  /** Up to 254 chars of a byte each, or null. */
  latin1(text: string | null): void {
    this.u8(text === null ? 255 : text.length)
    if (text === null) return
    this.buffer.write(text, this.at, 'latin1')
    this.at += text.length
  }

  text(text: string): void {
    const length = this.buffer.write(text, this.at + 2)
    this.u16(length)
    this.at += length
  }
}

class Reader {
  readonly buffer: Buffer
  at = 0

  constructor(buffer: Buffer) {
    this.buffer = buffer
  }

  u8(): number {
    return this.buffer[this.at++]!
  }

  u16(): number {
    return this.u8() * 256 + this.u8()
  }

  u32(): number {
    return this.u16() * 65_536 + this.u16()
  }

  /** A view. */
  bytes(length: number): Uint8Array {
    this.at += length
    return new Uint8Array(this.buffer.buffer, this.buffer.byteOffset + this.at - length, length)
  }

  latin1(): string | null {
    const length = this.u8()
    if (length === 255) return null
    this.at += length
    return this.buffer.toString('latin1', this.at - length, this.at)
  }

  text(): string {
    const length = this.u16()
    this.at += length
    return this.buffer.toString('utf8', this.at - length, this.at)
  }
}

/** Numbers the texts of one batch. */
export class Texts {
  readonly list: string[] = []
  readonly #index = new Map<string, number>()

  indexOf(text: string | null): number {
    if (text === null) return 0
    let index = this.#index.get(text)
    if (index === undefined) {
      index = this.list.push(text)
      this.#index.set(text, index)
    }
    return index
  }
}

const textAt = (texts: readonly string[], index: number) => (index === 0 ? null : texts[index - 1]!)

/** Bytes that {@link packGroups} needs at the most; keys and CIDs have their known length. */
export function packedSize(group: Group): number {
  let size = 256
  for (const { frame } of group.jobs) size += frame.length + 320
  return size
}

/** Writes groups back to back; gives the bytes used. Groups with texts that do not fit have to be kept out, see {@link isPackable}. */
export function packGroups(groups: readonly Group[], texts: Texts, buffer: Buffer): number {
  const writer = new Writer(buffer)
  for (const { prior, jobs } of groups) {
    writer.u16(jobs.length)
    packState(writer, texts, prior)
    for (const job of jobs) packJob(writer, texts, job)
  }
  return writer.at
}

/** Foreign keys and CIDs may be of lengths that no right ones have. */
export function isPackable({ prior, jobs }: Group): boolean {
  if ((prior?.data?.length ?? 0) > 254 || (prior?.commit?.length ?? 0) > 254) return false
  return jobs.every(({ identity }) => (identity?.key?.length ?? 0) <= 254)
}

function packState(writer: Writer, texts: Texts, state: AccountState | null): void {
  writer.u8(state === null ? 0 : state.active ? 2 : 1)
  if (state === null) return
  writer.latin1(state.rev)
  writer.latin1(state.data)
  writer.latin1(state.commit)
  writer.u16(texts.indexOf(state.status))
  writer.u16(texts.indexOf(state.local))
  writer.u16(texts.indexOf(state.host))
}

function unpackState(reader: Reader, texts: readonly string[]): AccountState | null {
  const kind = reader.u8()
  if (kind === 0) return null
  return {
    active: kind === 2,
    rev: reader.latin1() as Tid | null,
    data: reader.latin1(),
    commit: reader.latin1(),
    status: textAt(texts, reader.u16()),
    local: textAt(texts, reader.u16()),
    host: textAt(texts, reader.u16()),
  }
}

function packJob(writer: Writer, texts: Texts, { frame, host, policy, identity }: Job): void {
  writer.u16(texts.indexOf(host))
  writer.u8((policy === 'strict' ? 1 : 0) | (identity ? 2 : 0) | (identity?.fresh ? 4 : 0))
  if (identity) {
    writer.u16(texts.indexOf(identity.pds))
    writer.latin1(identity.key)
  }
  writer.u32(frame.length)
  writer.bytes(frame)
}

/** Reads what {@link packGroups} wrote. Frames and CIDs are views. */
export function unpackGroups(bytes: Uint8Array, count: number, texts: readonly string[]): Group[] {
  const reader = new Reader(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))
  const groups: Group[] = []
  for (let i = 0; i < count; i++) {
    const length = reader.u16()
    const prior = unpackState(reader, texts)
    const jobs: Job[] = []
    for (let n = 0; n < length; n++) jobs.push(unpackJob(reader, texts))
    groups.push({ prior, jobs })
  }
  return groups
}

function unpackJob(reader: Reader, texts: readonly string[]): Job {
  const host = textAt(texts, reader.u16())!
  const flags = reader.u8()
  let identity: StatedIdentity | null = null
  if (flags & 2) identity = { pds: textAt(texts, reader.u16()), key: reader.latin1(), fresh: (flags & 4) !== 0 }
  const frame = reader.bytes(reader.u32())
  return { frame, host, policy: flags & 1 ? 'strict' : 'observe', identity }
}

/** The outcomes of several groups in one buffer of its own. `texts` gets statuses and hosts. */
export function packOutcomes(all: readonly (readonly Outcome[])[], texts: Texts): Uint8Array {
  let size = 0
  for (const outcomes of all) size += 2 + outcomes.length * (256 + 4 * DETAIL_LENGTH_MAX)
  const scratch = scratchOf(size)
  const writer = new Writer(scratch)
  for (const outcomes of all) {
    writer.u16(outcomes.length)
    for (const outcome of outcomes) packOutcome(writer, texts, outcome)
  }
  return new Uint8Array(scratch.subarray(0, writer.at))
}

let scratch = Buffer.alloc(0)
function scratchOf(size: number): Buffer {
  if (scratch.length < size) scratch = Buffer.allocUnsafeSlow(size)
  return scratch
}

function packOutcome(writer: Writer, texts: Texts, outcome: Outcome): void {
  writer.u8(KINDS.indexOf(outcome.kind))
  switch (outcome.kind) {
    case 'admit':
      writer.u8(outcome.notes.length)
      for (const note of outcome.notes) writer.u8(reasonIndex.get(note)!)
      packState(writer, texts, outcome.next)
      break
    case 'drop':
      writer.u8(reasonIndex.get(outcome.reason)!)
      writer.u8(outcome.detail === undefined ? 0 : 1)
      if (outcome.detail !== undefined) writer.text(outcome.detail.slice(0, DETAIL_LENGTH_MAX))
      break
    case 'retry-identity':
      writer.u8(reasonIndex.get(outcome.reason)!)
      break
    default:
      writer.text(outcome.detail.slice(0, DETAIL_LENGTH_MAX))
  }
}

/** Reads what {@link packOutcomes} wrote. CIDs are views. */
export function unpackOutcomes(bytes: Uint8Array, count: number, texts: readonly string[]): Outcome[][] {
  const reader = new Reader(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))
  return Array.from({ length: count }, () => Array.from({ length: reader.u16() }, () => unpackOutcome(reader, texts)))
}

function unpackOutcome(reader: Reader, texts: readonly string[]): Outcome {
  const kind = KINDS[reader.u8()]!
  switch (kind) {
    case 'admit': {
      const notes = Array.from({ length: reader.u8() }, () => REASONS[reader.u8()]!)
      return { kind, notes, next: unpackState(reader, texts)! }
    }
    case 'drop': {
      const reason = REASONS[reader.u8()]!
      return reader.u8() === 0 ? { kind, reason } : { kind, reason, detail: reader.text() }
    }
    case 'retry-identity':
      return { kind, reason: REASONS[reader.u8()]! }
    default:
      return { kind, detail: reader.text() }
  }
}
