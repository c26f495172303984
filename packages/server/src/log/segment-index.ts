/**
 * The sidecar index of a segment: a header, then one fixed-size record per event, in the order of the data file.
 *
 * Header, 64 bytes: `MSKYIDX1`, u64 first seq, u64 first seq of the segment before (0: none), zeros, u32 CRC-32 of the 60 bytes before.
 * Record, 40 bytes: u64 seq, u32 offset, u32 length, u64 account, u48 time, u16 lag, u32 CRC-32 of the message, u32 CRC-32 of the 36
 * bytes before. Little-endian; u64 below 2^53.
 *
 * `lag` says how many of the records right before this one were not known to be on disk when it was written (65535: that many or more). So a
 * good record proves that everything further back was safe once, and damage there is loss, not a torn tail.
 */
import { crc32 } from 'node:zlib'

export const HEADER_BYTES = 64
export const RECORD_BYTES = 40
export const LAG_UNKNOWN = 0xffff
const MAGIC = Buffer.from('MSKYIDX1')

export interface IndexHeader {
  readonly first: number
  readonly previous: number
}

export interface IndexRecord {
  readonly seq: number
  readonly offset: number
  readonly length: number
  readonly account: number
  readonly time: number
  readonly lag: number
  /** CRC-32 of the whole WebSocket message. */
  readonly crc: number
}

export function encodeHeader({ first, previous }: IndexHeader): Buffer {
  const header = Buffer.alloc(HEADER_BYTES)
  MAGIC.copy(header)
  writeUint53(header, 8, first)
  writeUint53(header, 16, previous)
  header.writeUInt32LE(crc32(header.subarray(0, 60)), 60)
  return header
}

/** The header at the start of `bytes`, or null when it is not whole. */
export function decodeHeader(bytes: Buffer): IndexHeader | null {
  if (bytes.length < HEADER_BYTES || !bytes.subarray(0, 8).equals(MAGIC)) return null
  if (bytes.readUInt32LE(60) !== crc32(bytes.subarray(0, 60))) return null
  return { first: readUint53(bytes, 8), previous: readUint53(bytes, 16) }
}

export function writeRecord(target: Buffer, at: number, record: IndexRecord): void {
  writeUint53(target, at, record.seq)
  writeUint32(target, at + 8, record.offset)
  writeUint32(target, at + 12, record.length)
  writeUint53(target, at + 16, record.account)
  writeUint32(target, at + 24, record.time >>> 0)
  const high = Math.floor(record.time / 0x1_0000_0000)
  target[at + 28] = high
  target[at + 29] = high >>> 8
  target[at + 30] = record.lag
  target[at + 31] = record.lag >>> 8
  writeUint32(target, at + 32, record.crc)
  writeUint32(target, at + 36, crc32(target.subarray(at, at + 36)))
}

/** The record at `at`, or null when it is cut short or damaged. */
export function readRecord(bytes: Buffer, at: number): IndexRecord | null {
  if (at + RECORD_BYTES > bytes.length) return null
  if (bytes.readUInt32LE(at + 36) !== crc32(bytes.subarray(at, at + 36))) return null
  return {
    seq: readUint53(bytes, at),
    offset: bytes.readUInt32LE(at + 8),
    length: bytes.readUInt32LE(at + 12),
    account: readUint53(bytes, at + 16),
    time: bytes.readUInt32LE(at + 24) + bytes.readUInt16LE(at + 28) * 0x1_0000_0000,
    lag: bytes.readUInt16LE(at + 30),
    crc: bytes.readUInt32LE(at + 32),
  }
}

/** Single fields, for looking through many records without building them. `at` is where the record starts. */
export const seqAt = (bytes: Buffer, at: number): number => readUint53(bytes, at)
export const offsetAt = (bytes: Buffer, at: number): number => bytes.readUInt32LE(at + 8)
export const endAt = (bytes: Buffer, at: number): number => bytes.readUInt32LE(at + 8) + bytes.readUInt32LE(at + 12)
export const accountAt = (bytes: Buffer, at: number): number => readUint53(bytes, at + 16)
export const timeAt = (bytes: Buffer, at: number): number =>
  bytes.readUInt32LE(at + 24) + bytes.readUInt16LE(at + 28) * 0x1_0000_0000

/** Where the record of the `n`th event of a segment starts in the file. */
export const recordPosition = (n: number): number => HEADER_BYTES + n * RECORD_BYTES

function writeUint32(target: Buffer, at: number, value: number): void {
  target[at] = value
  target[at + 1] = value >>> 8
  target[at + 2] = value >>> 16
  target[at + 3] = value >>> 24
}

function writeUint53(target: Buffer, at: number, value: number): void {
  writeUint32(target, at, value >>> 0)
  writeUint32(target, at + 4, Math.floor(value / 0x1_0000_0000))
}

function readUint53(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 0x1_0000_0000
}
