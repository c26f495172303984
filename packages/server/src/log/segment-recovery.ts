/**
 * Bringing a segment folder back to a sound state when it is opened.
 *
 * What was never known to be on disk may be torn: it is cut off the end. What was, must be there and be right: anything else is a hole, and
 * stops the open, for a log that has lost events must not pretend otherwise.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { crc32 } from 'node:zlib'
import { scanWire } from './frame-wire.ts'
import { dataPath, indexPath, nameOf, SEGMENT_FILE, type Segment } from './segment-files.ts'
import {
  decodeHeader,
  encodeHeader,
  HEADER_BYTES,
  type IndexHeader,
  type IndexRecord,
  LAG_UNKNOWN,
  RECORD_BYTES,
  readRecord,
  recordPosition,
  writeRecord,
} from './segment-index.ts'

const SCAN_BYTES = 4 << 20

/** What can be known of a frame whose index record is lost. */
export interface Recovered {
  readonly seq: number
  readonly account: number
  /** Milliseconds since the epoch. */
  readonly time: number
}

/**
 * Reads a frame back into an index record; null (or a throw) when it is not whole. It should check all it can, such as block hashes, for
 * nothing else vouches for these bytes.
 */
export type Recover = (frame: Uint8Array) => Recovered | null

/** What was done to make the folder sound; nothing is said about what was in order. */
export interface Repair {
  readonly segment: string
  /** Index records written anew from the data. */
  readonly rebuilt: number
  readonly dataBytesCut: number
  readonly indexBytesCut: number
}

/** The log cannot be opened without losing events that were once safe. */
export class LogDamaged extends Error {
  constructor(folder: string, what: string) {
    super(
      `The event log in ${folder} is damaged: ${what}. Restore it from a backup, or move the folder away and start with a higher first seq.`,
    )
    this.name = 'LogDamaged'
  }
}

/**
 * Finds the segments of a folder, oldest first, and repairs the end of the last one.
 *
 * Of the older ones only the ends are looked at; {@link verifySegment} reads all.
 * @throws LogDamaged
 */
export function recoverSegments(folder: string, recover: Recover, repaired: (repair: Repair) => void): Segment[] {
  const firsts = dropLeftovers(folder, listSegments(folder))
  const segments: Segment[] = []
  for (const [i, first] of firsts.entries()) {
    const isLast = i === firsts.length - 1
    const previous = firsts[i - 1] ?? 0
    const segment = isLast
      ? recoverLast(folder, first, previous, recover, repaired)
      : (inspect(folder, first) ?? rebuild(folder, first, previous, recover, repaired))
    if (!segment) continue
    const before = segments.at(-1)
    if (before && segment.previous !== before.first) {
      throw new LogDamaged(folder, `the segment ${nameOf(segment.previous)} before ${nameOf(first)} is missing`)
    }
    if (before && before.last >= first)
      throw new LogDamaged(folder, `the segments ${nameOf(before.first)} and ${nameOf(first)} overlap`)
    segments.push(segment)
  }
  return segments
}

interface Listed {
  readonly first: number
  readonly hasData: boolean
}

function listSegments(folder: string): Listed[] {
  const found = new Map<number, boolean>()
  for (const name of readdirSync(folder)) {
    const match = SEGMENT_FILE.exec(name)
    if (!match) continue
    const first = Number(match[1])
    found.set(first, (found.get(first) ?? false) || match[2] === 'log')
  }
  return [...found].map(([first, hasData]) => ({ first, hasData })).sort((a, b) => a.first - b.first)
}

/**
 * Removes index files that a crash has left without data: of pruning, which takes the oldest segments and the data first, and of the writer,
 * which makes the index of a new segment first.
 */
function dropLeftovers(folder: string, listed: Listed[]): number[] {
  const start = listed.findIndex(segment => segment.hasData)
  for (const [i, { first, hasData }] of listed.entries()) {
    if (hasData) continue
    const pruned = i < start
    const unused = i === listed.length - 1 && sizeOf(indexPath(folder, first)) <= HEADER_BYTES
    if (!pruned && !unused) throw new LogDamaged(folder, `${nameOf(first)}.log is missing`)
    rmSync(indexPath(folder, first))
  }
  return listed.filter(segment => segment.hasData).map(segment => segment.first)
}

/** A full segment by the ends of its index; null when the index is missing or cut short, so that it must be made anew. */
function inspect(folder: string, first: number): Segment | null {
  if (!existsSync(indexPath(folder, first))) return null
  const dataBytes = sizeOf(dataPath(folder, first))
  const index = openSync(indexPath(folder, first), 'r')
  try {
    const bytes = fstatSync(index).size
    const events = (bytes - HEADER_BYTES) / RECORD_BYTES
    const header = decodeHeader(pread(index, 0, HEADER_BYTES))
    if (!header || !Number.isInteger(events) || events < 1) return null
    const start = readRecord(pread(index, recordPosition(0), RECORD_BYTES), 0)
    const end = readRecord(pread(index, recordPosition(events - 1), RECORD_BYTES), 0)
    if (!start || !end || start.seq !== first || header.first !== first) return null
    const indexed = end.offset + end.length
    if (indexed > dataBytes) throw new LogDamaged(folder, `${nameOf(first)}.log has ${dataBytes} bytes of ${indexed}`)
    if (indexed < dataBytes) return null
    return {
      first,
      previous: header.previous,
      last: end.seq,
      events,
      dataBytes,
      firstTime: start.time,
      lastTime: end.time,
    }
  } finally {
    closeSync(index)
  }
}

/** Makes a full segment's index anew. All of its data must be frames: it was safe once. */
function rebuild(
  folder: string,
  first: number,
  previous: number,
  recover: Recover,
  repaired: (repair: Repair) => void,
): Segment {
  const data = openSync(dataPath(folder, first), 'r')
  try {
    const { size } = fstatSync(data)
    const { records, end } = scanFrames(data, 0, size, first - 1, recover)
    if (end < size) throw new LogDamaged(folder, `${nameOf(first)}.log is not readable at byte ${end}`)
    if (records[0]?.seq !== first)
      throw new LogDamaged(folder, `${nameOf(first)}.log does not begin with event ${first}`)
    replaceIndex(folder, { first, previous }, records)
    repaired({ segment: nameOf(first), rebuilt: records.length, dataBytesCut: 0, indexBytesCut: 0 })
    return segmentOf({ first, previous }, records)
  } finally {
    closeSync(data)
  }
}

/** The last segment, read whole: cut where it is torn, its index completed from the data. Null when nothing is left of it. */
function recoverLast(
  folder: string,
  first: number,
  previous: number,
  recover: Recover,
  repaired: (repair: Repair) => void,
): Segment | null {
  const data = openSync(dataPath(folder, first), 'r+')
  const index = openSync(indexPath(folder, first), existsSync(indexPath(folder, first)) ? 'r+' : 'w+')
  try {
    const dataBytes = fstatSync(data).size
    const bytes = pread(index, 0, fstatSync(index).size)
    const header = decodeHeader(bytes) ?? { first, previous }
    if (header.first !== first)
      throw new LogDamaged(folder, `${nameOf(first)}.idx is the index of ${nameOf(header.first)}`)
    const known = soundRecords(bytes, first)
    const sound = checkData(data, dataBytes, known)
    assertNoHole(folder, first, bytes, sound)
    const records = known.slice(0, sound)
    let end = endOf(records)
    if (sound === known.length) {
      const more = scanFrames(data, end, dataBytes, records.at(-1)?.seq ?? first - 1, recover)
      records.push(...more.records)
      end = more.end
    }
    if (records.length > 0 && records[0]!.seq !== first) {
      throw new LogDamaged(folder, `${nameOf(first)}.log does not begin with event ${first}`)
    }
    const rebuilt = records.length - sound
    const indexEnd = recordPosition(sound)
    const indexBytesCut = Math.max(0, bytes.length - indexEnd)
    if (end < dataBytes || rebuilt > 0 || indexBytesCut > 0) {
      repaired({ segment: nameOf(first), rebuilt, dataBytesCut: dataBytes - end, indexBytesCut })
    }
    if (records.length === 0) {
      rmSync(dataPath(folder, first))
      rmSync(indexPath(folder, first))
      return null
    }
    ftruncateSync(data, end)
    ftruncateSync(index, Math.min(bytes.length, indexEnd))
    pwrite(index, 0, encodeHeader(header))
    pwrite(index, indexEnd, encodeRecords(records.slice(sound)))
    fsyncSync(data)
    fsyncSync(index)
    return segmentOf(header, records)
  } finally {
    closeSync(data)
    closeSync(index)
  }
}

/** The records up to the first that is damaged or does not follow on the one before. */
function soundRecords(index: Buffer, first: number): IndexRecord[] {
  const records: IndexRecord[] = []
  let end = 0
  let seq = first - 1
  for (let at = HEADER_BYTES; ; at += RECORD_BYTES) {
    const record = readRecord(index, at)
    if (!record || record.offset !== end || record.seq <= seq) return records
    records.push(record)
    end += record.length
    seq = record.seq
  }
}

/** How many records, from the first on, have their data as it was written. */
function checkData(data: number, dataBytes: number, records: readonly IndexRecord[]): number {
  let chunk: Buffer = Buffer.alloc(0)
  let chunkStart = 0
  for (const [i, { offset, length, crc }] of records.entries()) {
    if (offset + length > dataBytes) return i
    if (offset + length > chunkStart + chunk.length) {
      chunkStart = offset
      chunk = pread(data, offset, Math.min(dataBytes - offset, Math.max(SCAN_BYTES, length)))
    }
    if (crc32(chunk.subarray(offset - chunkStart, offset - chunkStart + length)) !== crc) return i
  }
  return records.length
}

/** Damage is a torn tail only as long as no later record says that what is damaged was safe. */
function assertNoHole(folder: string, first: number, index: Buffer, sound: number): void {
  for (let n = sound + 1; recordPosition(n + 1) <= index.length; n++) {
    const record = readRecord(index, recordPosition(n))
    if (record && record.lag < LAG_UNKNOWN && n - record.lag > sound) {
      throw new LogDamaged(
        folder,
        `event ${sound + 1} of segment ${nameOf(first)} is lost or altered, though later ones are there`,
      )
    }
  }
}

/** Frames found in the data from `start` on, until one is cut short, unreadable or out of order. */
function scanFrames(
  data: number,
  start: number,
  dataBytes: number,
  after: number,
  recover: Recover,
): { records: IndexRecord[]; end: number } {
  const records: IndexRecord[] = []
  let end = start
  let seq = after
  let size = SCAN_BYTES
  while (end < dataBytes) {
    const chunk = pread(data, end, Math.min(size, dataBytes - end))
    let at = 0
    for (;;) {
      const span = scanWire(chunk, at)
      if (span === 'bad') return { records, end }
      if (span === null) break
      const found = attempt(recover, chunk.subarray(span.start, span.end))
      if (!found || found.seq <= seq) return { records, end }
      const { account, time } = found
      const crc = crc32(chunk.subarray(at, span.end))
      records.push({ seq: found.seq, account, time, offset: end, length: span.end - at, lag: LAG_UNKNOWN, crc })
      seq = found.seq
      end += span.end - at
      at = span.end
    }
    if (at > 0) size = SCAN_BYTES
    else if (chunk.length < size) return { records, end }
    else size *= 4
  }
  return { records, end }
}

function attempt(recover: Recover, frame: Uint8Array): Recovered | null {
  try {
    return recover(frame)
  } catch {
    return null
  }
}

function encodeRecords(records: readonly IndexRecord[]): Buffer {
  const bytes = Buffer.alloc(records.length * RECORD_BYTES)
  for (const [i, record] of records.entries()) writeRecord(bytes, i * RECORD_BYTES, record)
  return bytes
}

function replaceIndex(folder: string, header: IndexHeader, records: readonly IndexRecord[]): void {
  const fd = openSync(indexPath(folder, header.first), 'w')
  pwrite(fd, 0, encodeHeader(header))
  pwrite(fd, HEADER_BYTES, encodeRecords(records))
  fsyncSync(fd)
  closeSync(fd)
}

function segmentOf(header: IndexHeader, records: readonly IndexRecord[]): Segment {
  const [start, end] = [records[0]!, records.at(-1)!]
  return {
    ...header,
    last: end.seq,
    events: records.length,
    dataBytes: endOf(records),
    firstTime: start.time,
    lastTime: end.time,
  }
}

function endOf(records: readonly IndexRecord[]): number {
  const end = records.at(-1)
  return end ? end.offset + end.length : 0
}

/** Reads a whole segment and compares every event with its checksum. @returns what is wrong with it, or null. */
export function verifySegment(folder: string, first: number): string | null {
  const data = openSync(dataPath(folder, first), 'r')
  const index = openSync(indexPath(folder, first), 'r')
  try {
    const bytes = pread(index, 0, fstatSync(index).size)
    if (!decodeHeader(bytes)) return 'the index has no header'
    const records = soundRecords(bytes, first)
    const sound = checkData(data, fstatSync(data).size, records)
    if (sound < records.length) return `event ${records[sound]!.seq} is not as it was written`
    if (recordPosition(records.length) < bytes.length)
      return `the index is not readable from its record ${records.length} on`
    return null
  } finally {
    closeSync(data)
    closeSync(index)
  }
}

/** Reads a whole log and compares every event with its checksum. Changes nothing; nobody may be writing to it. */
export function checkSegments(folder: string): { segment: string; events: number; problem: string | null }[] {
  return listSegments(folder).map(({ first, hasData }) => {
    const segment = nameOf(first)
    if (!hasData) return { segment, events: 0, problem: 'the data is missing' }
    if (!existsSync(indexPath(folder, first))) return { segment, events: 0, problem: 'the index is missing' }
    const events = Math.max(0, Math.floor((sizeOf(indexPath(folder, first)) - HEADER_BYTES) / RECORD_BYTES))
    return { segment, events, problem: verifySegment(folder, first) }
  })
}

function sizeOf(path: string): number {
  const fd = openSync(path, 'r')
  try {
    return fstatSync(fd).size
  } finally {
    closeSync(fd)
  }
}

function pread(fd: number, position: number, length: number): Buffer {
  const buffer = Buffer.allocUnsafeSlow(length)
  let done = 0
  while (done < length) {
    const bytes = readSync(fd, buffer, done, length - done, position + done)
    if (bytes === 0) break
    done += bytes
  }
  return buffer.subarray(0, done)
}

function pwrite(fd: number, position: number, bytes: Buffer): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, position + done)
}
