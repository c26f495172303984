/**
 * The codecs against those of other projects: decoding and encoding a frame, a record and an MST node; reading a CAR.
 *
 * Data is made up but shaped like the network's: a #commit frame of 5 KB whose CAR holds seven blocks of 200-900 bytes.
 * Ours makes the bytes and text of links only when asked, which here nobody does; the peers make the bytes at once.
 */
import * as atcuteCar from '@atcute/car'
import * as atcute from '@atcute/cbor'
import * as reference from '@atproto/repo'
import * as dagCbor from '@ipld/dag-cbor'
import { concat } from '@millisky/core/bytes'
import { readCar, writeCar } from '@millisky/core/car'
import { decode, decodeFirst, encode, type Obj, type Value } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { type Case, compare, type Measured, machine, printTable } from './measure.ts'

/** Takes each table as it is measured. The first row is ours, the others are peers. */
export type Report = (title: string, rows: Measured[], unit?: string) => void

/** Bytes that look random and are the same every time. */
function noise(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length)
  let state = seed + 1
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
    bytes[i] = state >>> 16
  }
  return bytes
}

const cidOf = (seed: number) => Cid.ofCbor(noise(8, seed))
const DID = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
const REV = '3l3pte3p2e325'
const PATH = `app.bsky.feed.post/${REV}`
const TIME = '2026-08-20T12:34:56.789Z'

/** A reply with a link in it, some of it beyond ASCII; about 690 bytes. */
function post(): Obj {
  const ref = (seed: number): Obj => ({ cid: cidOf(seed).toString(), uri: `at://${DID}/${PATH}` })
  return {
    text: 'What the wire carries is mostly this — a sentence or two, perhaps a link to https://example.com/some/path 🦋',
    $type: 'app.bsky.feed.post',
    langs: ['en'],
    reply: { root: ref(1), parent: ref(2) },
    facets: [
      {
        index: { byteEnd: 107, byteStart: 78 },
        features: [{ uri: 'https://example.com/some/path', $type: 'app.bsky.richtext.facet#link' }],
      },
    ],
    createdAt: TIME,
  }
}

/** An MST node of `count` entries, keys compressed as they would be. */
function node(count: number, seed: number): Obj {
  const e = Array.from({ length: count }, (_, i) => ({
    k: new TextEncoder().encode(i === 0 ? PATH : PATH.slice(22 + (i % 3))),
    p: i === 0 ? 0 : 22 + (i % 3),
    t: i % 2 === 0 ? cidOf(seed + i) : null,
    v: cidOf(seed + 50 + i),
  }))
  return { e, l: cidOf(seed + 99) }
}

function frame(): { frame: Uint8Array; car: Uint8Array } {
  const block = (value: Value) => {
    const bytes = encode(value)
    return { cid: Cid.ofCbor(bytes), bytes }
  }
  const record = block(post())
  const nodes = [9, 8, 8, 7, 6].map((count, i) => block(node(count, 100 * i)))
  const commit = { did: DID, version: 3, data: nodes[0]!.cid, rev: REV, prev: null, sig: noise(64, 7) }
  const blocks = [block(commit), ...nodes, record]
  const car = writeCar([blocks[0]!.cid], blocks)
  const body = {
    ops: [{ cid: record.cid, path: PATH, action: 'create' }],
    rev: REV,
    seq: 12_345_678_901,
    repo: DID,
    time: TIME,
    blobs: [],
    since: '3l3pte3p2e324',
    blocks: car,
    commit: blocks[0]!.cid,
    rebase: false,
    tooBig: false,
    prevData: cidOf(5),
  }
  return { frame: concat([encode({ t: '#commit', op: 1 }), encode(body)]), car }
}

/** The cases for one value: decode, and encode what was decoded, each library its own. */
function decodings(bytes: Uint8Array): Case[] {
  return [
    { name: 'millisky', fn: () => decode(bytes) },
    { name: '@atcute/cbor', fn: () => atcute.decode(bytes) },
    { name: '@ipld/dag-cbor', fn: () => dagCbor.decode(bytes) },
  ]
}

function encodings(bytes: Uint8Array): Case[] {
  const [ours, theirs, ipld] = [decode(bytes), atcute.decode(bytes), dagCbor.decode(bytes)]
  return [
    { name: 'millisky', fn: () => encode(ours) },
    { name: '@atcute/cbor', fn: () => atcute.encode(theirs) },
    { name: '@ipld/dag-cbor', fn: () => dagCbor.encode(ipld) },
  ]
}

function frameDecodings(bytes: Uint8Array): Case[] {
  const { end } = decodeFirst(bytes)
  const [header, body] = [bytes.subarray(0, end), bytes.subarray(end)]
  return [
    { name: 'millisky', fn: () => decodeFirst(bytes, decodeFirst(bytes).end) },
    { name: '@atcute/cbor', fn: () => atcute.decodeFirst(atcute.decodeFirst(bytes)[1]) },
    // It decodes no prefix; here it is told where the header ends.
    { name: '@ipld/dag-cbor', fn: () => [dagCbor.decode(header), dagCbor.decode(body)] },
  ]
}

export async function run(report: Report): Promise<void> {
  const { frame: bytes, car } = frame()
  const body = bytes.subarray(decodeFirst(bytes).end)
  const values = { 'body of a #commit': body, 'post record': encode(post()), 'MST node': encode(node(5, 3)) }
  const options = { seconds: 1.5, rounds: 15 }
  report(`decode #commit frame, ${bytes.length} bytes`, await compare(frameDecodings(bytes), options))
  for (const [name, value] of Object.entries(values)) {
    report(`decode ${name}, ${value.length} bytes`, await compare(decodings(value), options))
    report(`encode ${name}, ${value.length} bytes`, await compare(encodings(value), options))
  }
  const verified = [
    { name: 'millisky', fn: () => readCar(car) },
    { name: '@atproto/repo', fn: () => reference.readCar(car) },
  ]
  report(`read CAR and verify, ${car.length} bytes, 7 blocks`, await compare(verified, options))
  const unverified = [
    { name: 'millisky', fn: () => readCar(car, { verify: false }) },
    { name: '@atcute/car', fn: () => [...atcuteCar.fromUint8Array(car)] },
    { name: '@atproto/repo', fn: () => reference.readCar(car, { skipCidVerification: true }) },
  ]
  report(`read CAR unverified, ${car.length} bytes, 7 blocks`, await compare(unverified, options))
}

if (import.meta.main) {
  console.log(machine())
  await run((title, rows) => printTable(title, rows))
}
