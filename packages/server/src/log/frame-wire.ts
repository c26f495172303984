/**
 * Event frames as WebSocket messages: final, unmasked, binary, one frame per message. Source: RFC 6455 §5.2.
 */

const FINAL_BINARY = 0x82

/** Bytes of the WebSocket header for a payload of this length: 2, 4 or 10. */
export function wireHeaderSize(payload: number): 2 | 4 | 10 {
  return payload < 126 ? 2 : payload < 65_536 ? 4 : 10
}

/** Writes the header of a message with this payload length at `at`; gives the offset where the payload starts. Lengths up to 2^32-1. */
export function writeWireHeader(target: Uint8Array, at: number, payload: number): number {
  target[at] = FINAL_BINARY
  if (payload < 126) {
    target[at + 1] = payload
    return at + 2
  }
  if (payload < 65_536) {
    target[at + 1] = 126
    target[at + 2] = payload >>> 8
    target[at + 3] = payload
    return at + 4
  }
  target[at + 1] = 127
  target.fill(0, at + 2, at + 6)
  target[at + 6] = payload >>> 24
  target[at + 7] = payload >>> 16
  target[at + 8] = payload >>> 8
  target[at + 9] = payload
  return at + 10
}

/** One frame as a complete WebSocket message, in a buffer of its own. */
export function toWire(frame: Uint8Array): Uint8Array {
  const size = wireHeaderSize(frame.length)
  const message = new Uint8Array(size + frame.length)
  message.set(frame, writeWireHeader(message, 0, frame.length))
  return message
}

/** A message whose frame of so many bytes is still to be written, at the place that comes with it. */
export function emptyWire(length: number): { wire: Uint8Array; frame: Uint8Array } {
  const wire = Buffer.allocUnsafeSlow(wireHeaderSize(length) + length)
  return { wire, frame: wire.subarray(writeWireHeader(wire, 0, length)) }
}

/** Several frames as WebSocket messages back to back in one buffer; `ends[i]` is where message i ends. */
export function toWireBatch(frames: readonly Uint8Array[]): { wire: Uint8Array; ends: Uint32Array } {
  let size = 0
  for (const frame of frames) size += wireHeaderSize(frame.length) + frame.length
  const wire = Buffer.allocUnsafeSlow(size)
  const ends = new Uint32Array(frames.length)
  let at = 0
  for (let i = 0; i < frames.length; i++) {
    const frame = frames[i]!
    at = writeWireHeader(wire, at, frame.length)
    wire.set(frame, at)
    at += frame.length
    ends[i] = at
  }
  return { wire, ends }
}

/** Messages back to back in one buffer, which is the message itself if there is one only. */
export function joinWire(messages: readonly Uint8Array[]): { wire: Uint8Array; ends: Uint32Array } {
  const ends = new Uint32Array(messages.length)
  let end = 0
  for (let i = 0; i < messages.length; i++) ends[i] = end += messages[i]!.length
  return { wire: messages.length === 1 ? messages[0]! : Buffer.concat(messages), ends }
}

/** Where a message's payload lies. */
export interface WireSpan {
  /** First byte of the payload. */
  readonly start: number
  /** First byte after the message. */
  readonly end: number
}

/**
 * Locates the message that starts at `at`, or null when the bytes end before it does.
 *
 * Only what {@link writeWireHeader} writes is accepted, so a stray byte is noticed at the next header.
 * @returns 'bad' when no such message starts here.
 */
export function scanWire(bytes: Uint8Array, at: number): WireSpan | null | 'bad' {
  const left = bytes.length - at
  if (left < 1) return null
  if (bytes[at] !== FINAL_BINARY) return 'bad'
  if (left < 2) return null
  const short = bytes[at + 1]!
  if (short > 127) return 'bad'
  let start = at + 2
  let payload = short
  if (short === 126) {
    if (left < 4) return null
    payload = bytes[at + 2]! * 256 + bytes[at + 3]!
    if (payload < 126) return 'bad'
    start = at + 4
  } else if (short === 127) {
    if (left < 10) return null
    const view = new DataView(bytes.buffer, bytes.byteOffset + at + 2, 8)
    payload = view.getUint32(4)
    if (view.getUint32(0) !== 0 || payload < 65_536) return 'bad'
    start = at + 10
  }
  const end = start + payload
  return end > bytes.length ? null : { start, end }
}

/**
 * The frames inside a batch's wire bytes, as views.
 *
 * @throws Error when the bytes are not whole messages back to back: they are our own, so that is a bug.
 */
export function* framesOf(wire: Uint8Array | readonly Uint8Array[]): Generator<Uint8Array> {
  const parts = wire instanceof Uint8Array ? [wire] : wire
  for (const part of parts) {
    for (let at = 0; at < part.length; ) {
      const span = scanWire(part, at)
      if (span === null || span === 'bad') throw new Error(`not a whole WebSocket message at byte ${at}`)
      yield part.subarray(span.start, span.end)
      at = span.end
    }
  }
}
