// Power cuts in the middle of imports: what was there is there, what came in part can be brought again, and nothing stays behind.
import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { Blocks } from '@millisky/core/blocks'
import { readCar, writeCar } from '@millisky/core/car'
import { encode } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { signCommit } from '@millisky/core/commit'
import { SigningKey } from '@millisky/core/crypto'
import { Tree } from '@millisky/core/mst/tree'
import { verifyRepo } from '@millisky/core/repo'
import type { Did } from '@millisky/core/syntax'
import { encodeTid } from '@millisky/core/tid'
import { activateIn, type Child, killChild, startChild } from './testing-children.ts'

const RECORDS = 2_000
const KILLS = 2
const seed = Number(process.env.MILLISKY_TEST_SEED ?? 20_260_820)

/** From 0 to below 1, the same ones for the same seed. */
function randomOf(state: number): () => number {
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

/** A repository of another server, with so many records. */
function carOf(did: Did, count: number, text: string): { car: Uint8Array; paths: Map<string, string> } {
  const key = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(9))
  const records = Array.from({ length: count }, (_, i) => {
    const bytes = encode({ $type: 'com.example.thing', n: i, text })
    return { path: `com.example.thing/${encodeTid(i * 1_000, 1)}`, cid: Cid.ofCbor(bytes), bytes }
  })
  const tree = Tree.build(records.map(({ path, cid }) => [path, cid]))
  const { block } = signCommit({ did, data: tree.root, rev: encodeTid(1_700_000_000_000_000, 1) }, key)
  const paths = new Map(records.map(({ path, cid }) => [path, cid.toString()]))
  return { car: writeCar([block.cid], [block, ...tree.nodes(), ...records]), paths }
}

type User = Child['users'][0]

function call({ url }: Child, { token }: User, method: string, body?: Uint8Array | object): Promise<Response> {
  const isCar = body instanceof Uint8Array
  const type: Record<string, string> = body
    ? { 'content-type': isCar ? 'application/vnd.ipld.car' : 'application/json' }
    : {}
  return fetch(`${url}/xrpc/com.atproto.${method}`, {
    headers: { authorization: `Bearer ${token}`, ...type },
    ...(method.startsWith('sync.') ? {} : { method: 'POST' }),
    ...(body ? { body: isCar ? (body as never) : JSON.stringify(body) } : {}),
  })
}

/** The records of an account as its repository says, which is verified. */
async function recordsOf(child: Child, user: User): Promise<Map<string, string>> {
  const reply = await call(child, user, `sync.getRepo?did=${user.did}`)
  assert.equal(reply.status, 200)
  const { roots, blocks } = readCar(await reply.bytes())
  const repo = verifyRepo({ root: roots[0]!, blocks: new Blocks(blocks) }, { did: user.did as Did })
  return new Map([...repo.records].map(({ path, cid }) => [path, cid.toString()]))
}

test('kill -9 in the middle of imports', { timeout: 300_000 }, async t => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-imports-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  t.diagnostic(`seed ${seed}`)
  const random = randomOf(seed)
  const names = Array.from({ length: KILLS }, (_, i) => [`a${i}-arriving`, `b${i}`]).flat()
  let child = await startChild(folder, names)
  t.after(() => killChild(child))
  // How long it takes where nothing comes between.
  const { did } = child.users[0]!
  const since = performance.now()
  assert.equal((await call(child, child.users[0]!, 'repo.importRepo', carOf(did as Did, RECORDS, 'x').car)).status, 200)
  const usualMs = performance.now() - since
  let cutOff = 0
  for (let kill = 0; kill < KILLS; kill++) {
    const [arriving, active] = [2 * kill, 2 * kill + 1]
    const one = carOf(child.users[arriving]!.did as Did, RECORDS, 'as it was there')
    const two = carOf(child.users[active]!.did as Did, RECORDS / 4, 'as it was there')
    const before = await recordsOf(child, child.users[active]!)
    const running = [
      call(child, child.users[arriving]!, 'repo.importRepo', one.car),
      call(child, child.users[active]!, 'repo.importRepo', two.car),
    ].map(reply => reply.then(({ status }) => status).catch(() => null))
    await wait(random() * 0.7 * usualMs)
    await killChild(child)
    const told = await Promise.all(running)
    cutOff += told.filter(status => status === null).length

    child = await startChild(folder, names)
    const [mover, live] = [child.users[arriving]!, child.users[active]!]
    // In one step, or not at all.
    const now = await recordsOf(child, live)
    if (told[1] === 200) assert.deepEqual(now, two.paths)
    else assert.ok([before.size, two.paths.size].includes(now.size), `${now.size}`)
    const whole = await recordsOf(child, mover)
    if (told[0] === 200) assert.deepEqual(whole, one.paths)
    assert.ok(whole.size === 0 || whole.size === RECORDS, `${whole.size} records`)
    // What came in part does not become a repository with the wrong records.
    if (told[0] === null && whole.size === 0)
      assert.match((await activateIn(child, mover.did)) ?? 'null', /^null$|in part only/)
    // The others go on, and what was cut short is simply done again.
    const record = { repo: live.did, collection: 'com.example.more', record: { n: kill } }
    assert.equal((await call(child, live, 'repo.createRecord', record)).status, 200)
    assert.equal((await call(child, mover, 'repo.importRepo', one.car)).status, 200)
    assert.deepEqual(await recordsOf(child, mover), one.paths)
    assert.equal(await activateIn(child, mover.did), null)
    assert.deepEqual(await recordsOf(child, mover), one.paths)
    assert.deepEqual(await readdir(join(folder, 'blobs', '.staging')), [], 'no file stays')
  }
  t.diagnostic(`${cutOff} of ${2 * KILLS} imports were cut off, ${Math.round(usualMs)} ms for one alone`)
})
