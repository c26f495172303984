// Power cuts in the middle of a write storm: nothing that was acknowledged is lost, nothing that was seen is said anew.
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { Blocks } from '@millisky/core/blocks'
import { readCar } from '@millisky/core/car'
import type { Cid } from '@millisky/core/cid'
import { decodeFrame } from '@millisky/core/event'
import { verifyRepo } from '@millisky/core/repo'
import { until } from '@millisky/server/testing-until'
import { WebSocket } from 'ws'
import { type Child, killChild, startChild } from './testing-children.ts'

const NAMES = ['alice', 'bob', 'carla', 'dan', 'eve', 'fred']
const ROUNDS = 3
const ACKNOWLEDGED = 120

interface Written {
  uri: string
  cid: string
  commit: string
}

async function write(url: string, { did, token }: Child['users'][0], record: object): Promise<Written> {
  const answer = await fetch(`${url}/xrpc/com.atproto.repo.createRecord`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
    body: JSON.stringify({ repo: did, collection: 'com.example.storm', record }),
  })
  assert.equal(answer.status, 200)
  const { uri, cid, commit } = (await answer.json()) as { uri: string; cid: string; commit: { cid: string } }
  return { uri, cid, commit: commit.cid }
}

/** Writes until the server is gone; `acknowledged` gets what it confirmed. */
async function storm({ url, users }: Child, acknowledged: Written[]): Promise<void> {
  const writer = async (n: number) => {
    for (let i = 0; ; i++) {
      acknowledged.push(await write(url, users[n % users.length]!, { n: i, text: `${n} ${Math.random()}` }))
    }
  }
  const writers = Array.from({ length: 2 * users.length }, (_, n) => writer(n).catch(() => {}))
  await Promise.all(writers)
}

/** Follows the stream from a cursor; `seen` gets what each seq says. Resolves when the server is gone. */
function follow({ url }: Child, cursor: number, seen: Map<number, string>): { done: Promise<void> } {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos?cursor=${cursor}`)
  let last = cursor
  socket.on('message', data => {
    const { t, body } = decodeFrame(data as Buffer)
    const seq = body.seq as number
    assert.equal(seq, last + 1, 'no gap, no repetition')
    last = seq
    const says = `${t} ${body.repo ?? body.did} ${t === '#commit' ? (body.commit as Cid) : ''}`
    assert.ok(seen.get(seq) === undefined || seen.get(seq) === says, 'a seq never means two things')
    seen.set(seq, says)
  })
  socket.on('error', () => {})
  const done = new Promise<void>(resolve => socket.on('close', () => resolve()))
  return { done }
}

async function checkRecords({ url, users }: Child, acknowledged: Written[]): Promise<void> {
  const held = new Map<string, string>()
  for (const { did } of users) {
    const answer = await fetch(`${url}/xrpc/com.atproto.sync.getRepo?did=${did}`)
    const { roots, blocks } = readCar(new Uint8Array(await answer.arrayBuffer()))
    const repo = verifyRepo({ root: roots[0]!, blocks: new Blocks(blocks) }, { did: did as never })
    for (const { path, cid } of repo.records) held.set(`at://${did}/${path}`, cid.toString())
  }
  for (const { uri, cid } of acknowledged) assert.equal(held.get(uri), cid)
}

test('kill -9 in a write storm', { timeout: 120_000 }, async t => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-crash-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const acknowledged: Written[] = []
  const seen = new Map<number, string>()
  for (let round = 1; round <= ROUNDS; round++) {
    const child = await startChild(folder, NAMES)
    const { done } = follow(child, seen.size, seen)
    const storming = storm(child, acknowledged)
    while (acknowledged.length < round * ACKNOWLEDGED) await new Promise(resolve => setTimeout(resolve, 5))
    await killChild(child)
    await Promise.all([done, storming])
  }
  const child = await startChild(folder, NAMES)
  t.after(() => killChild(child))
  await checkRecords(child, acknowledged)
  // Who has the last event has all of them.
  const { commit: last } = await write(child.url, child.users[0]!, { text: 'the last one' })
  const isAll = (events: Map<number, string>) => events.get(events.size)?.endsWith(last)
  follow(child, seen.size, seen)
  await until('the rest came', () => isAll(seen))
  // The whole log, read anew, says what was seen as it happened.
  const again = new Map<number, string>()
  follow(child, 0, again)
  await until('all came again', () => isAll(again))
  assert.deepEqual(again, seen)
  const told = new Set([...seen.values()].map(says => says.split(' ')[2]))
  for (const { commit } of acknowledged) assert.ok(told.has(commit), 'every acknowledged commit was told')
})
