import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ReceiveMemory, release } from './receive-memory.ts'

/** A chunk as a socket gives it, and views of its bytes, each given by its beginning and end. */
function chunk(length: number, ...places: [number, number][]): [Buffer, ...Buffer[]] {
  const bytes = Buffer.from(new ArrayBuffer(length)).fill(7)
  return [bytes, ...places.map(([from, to]) => bytes.subarray(from, to))]
}

const isThere = ({ buffer }: Uint8Array) => buffer.byteLength > 0

test('a chunk is given back with its last message, in whatever order they are released', () => {
  const memory = new ReceiveMemory()
  const [bytes, first, second, third] = chunk(30, [2, 10], [12, 20], [22, 30])
  memory.came(bytes)
  for (const message of [first!, second!, third!]) memory.read(message)
  release(second!)
  release(third!)
  assert.ok(isThere(bytes))
  release(first!)
  assert.equal(bytes.buffer.byteLength, 0)
  assert.equal(first!.length, 0)
})

test('while more may be in it a chunk stays, until a message of a later one tells that there is not', () => {
  const memory = new ReceiveMemory()
  const [bytes, first] = chunk(30, [2, 10])
  memory.came(bytes)
  memory.read(first!)
  release(first!)
  // In fragments, so it was copied: more of the same chunk may follow.
  memory.read(Buffer.from(new ArrayBuffer(4)))
  assert.ok(isThere(bytes))
  const [later, next, last] = chunk(30, [12, 20], [22, 30])
  memory.came(later)
  // Came in pieces of both.
  memory.read(Buffer.from(new ArrayBuffer(4)))
  assert.ok(isThere(bytes))
  memory.read(next!)
  assert.ok(!isThere(bytes))
  memory.read(last!)
  release(next!)
  assert.ok(isThere(later))
  release(last!)
  assert.ok(!isThere(later))
})

test('a chunk without messages, or with one that nobody releases, is left alone', () => {
  const memory = new ReceiveMemory()
  const [piece] = chunk(30)
  memory.came(piece)
  const [bytes, kept, released] = chunk(30, [2, 10], [12, 30])
  memory.came(bytes)
  memory.read(kept!)
  memory.read(released!)
  release(released!)
  const [later, last] = chunk(30, [2, 30])
  memory.came(later)
  memory.read(last!)
  memory.keep()
  release(last!)
  assert.ok(isThere(piece) && isThere(bytes) && isThere(later))
})

test('memory that is shared with others is none of it, nor is what never came', () => {
  const memory = new ReceiveMemory()
  const [bytes, whole] = chunk(30, [10, 30])
  memory.came(whole!)
  memory.read(whole!)
  release(whole!)
  const stranger = Buffer.alloc(5_000)
  release(stranger)
  memory.read(stranger)
  release(stranger)
  assert.ok(isThere(bytes) && isThere(stranger))
})
