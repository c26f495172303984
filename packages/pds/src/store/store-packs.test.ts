// Blocks that are read together come as they would by themselves, on every database.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Block } from '@millisky/core/blocks'
import { Cid } from '@millisky/core/cid'
import { withSeq } from '@millisky/core/event'
import { asDid, asHandle, asNsid, asRkey } from '@millisky/core/syntax'
import { TidClock } from '@millisky/core/tid'
import { type Db, openDb } from '@millisky/server/db/db'
import { testDatabases } from '@millisky/server/db/testing'
import { Lanes } from '@millisky/server/lanes'
import { openSqlLog } from '@millisky/server/log/sql'
import { Lifecycle } from '../lifecycle.ts'
import { prepareRecord } from '../records.ts'
import { Repos } from '../repos.ts'
import { LEFT_OUT, OLD, type Pack } from './packs.ts'
import { migrations, type PdsSchema } from './schema.ts'
import { createSqlStore } from './sql.ts'
import { FEW_NODES, NODES_AT_ONCE_MAX } from './store.ts'

const now = () => 1_700_000_000_000
const did = asDid('did:web:alice.example')

function blocksOf(pack: Pack) {
  const blocks: { cid: Cid; bytes: Uint8Array | typeof LEFT_OUT | typeof OLD }[] = []
  while (pack.next()) {
    const { bytes, from, to, lacks } = pack
    if (lacks) assert.equal(to, from + 36)
    blocks.push({ cid: Cid.view(bytes, from, 36), bytes: lacks ?? Uint8Array.from(bytes.subarray(from + 36, to)) })
  }
  assert.equal(pack.bytes.length, pack.to)
  return blocks
}

for (const database of testDatabases()) {
  describe(`packs on ${database.name}`, { skip: database.skip }, async () => {
    const open = async (t: import('node:test').TestContext) => {
      const db = await openDb<PdsSchema>(await database.url(t), { migrations })
      const store = createSqlStore(db, await openSqlLog(db as unknown as Db<never>, { withSeq, now }))
      t.after(() => store.close())
      const repos = new Repos({ store, lanes: new Lanes(), tids: new TidClock({ now, clockId: 1 }), now })
      const key = { curve: 'k256' as const, secret: new Uint8Array(32).fill(7) }
      const account = { did, handle: asHandle('alice.test'), email: null, password: null, key, deactivated: false }
      const { id } = await new Lifecycle(repos).open(account)
      /** Writes records that hold a text of some length each. */
      const write = async (...wanted: [path: string, length: number][]) => {
        const nextRkey = () => repos.nextRkey()
        const records = wanted.map(([path, length]) => {
          const [collection, rkey] = path.split('/') as [string, string]
          // Bytes that are no text, and zeros, are to come through as well.
          const record = { text: 'x'.repeat(length), bytes: { $bytes: 'AP/AgAAA' } }
          return prepareRecord({
            collection: asNsid(collection),
            rkey: asRkey(rkey),
            record,
            validate: undefined,
            nextRkey,
          })
        })
        await repos.write(
          did,
          records.map(record => ({ action: 'create', record })),
        )
        return (await store.repos.state(did))!.head
      }
      return { db, store, id, write }
    }

    test('pages of records leave large ones out', async t => {
      const { store, id, write } = await open(t)
      await write(['a.b.c/1', 0], ['a.b.c/2', 3_000], ['a.b.c/3', 1_900], ['a.b.d/1', 1])
      await store.repos.snapshot(id, async view => {
        const page = async (from: string, below: string) => blocksOf(await view.page(from, below))
        const whole = async (path: string) => {
          const { cid, bytes } = (await view.record(path))!
          return { cid, bytes: Uint8Array.from(bytes) }
        }
        const { cid } = (await view.record('a.b.c/2'))!
        assert.deepEqual(await page('a.b.c/', 'a.b.c0'), [
          await whole('a.b.c/1'),
          { cid, bytes: LEFT_OUT },
          await whole('a.b.c/3'),
        ])
        assert.deepEqual(await page('a.b.c/3', '~'), [await whole('a.b.c/3'), await whole('a.b.d/1')])
        assert.deepEqual(await page('a.b.c/3', 'a.b.d/1'), [await whole('a.b.c/3')])
        assert.deepEqual(await page('a.b.d/2', '~'), [])
      })
    })

    test('a page has an end', async t => {
      const { store, id, write } = await open(t)
      const paths = Array.from({ length: 501 }, (_, i) => `a.b.c/${1_000 + i}`)
      for (let from = 0; from < paths.length; from += 100) {
        await write(...paths.slice(from, from + 100).map(path => [path, 1] as [string, number]))
      }
      await store.repos.snapshot(id, async view => {
        const counts: number[] = []
        for (let at = 0; at < paths.length; at += counts.at(-1)!) {
          counts.push(blocksOf(await view.page(paths[at]!, '~')).length)
        }
        assert.deepEqual(counts, [250, 250, 1])
        assert.equal(blocksOf(await view.page(paths[0]!, paths[250]!)).length, 250)
        assert.equal(blocksOf(await view.page(paths[0]!, paths[249]!)).length, 249)
      })
    })

    test('all nodes come at once, unless there are many', async t => {
      const { db, store, id, write } = await open(t)
      await write(...Array.from({ length: 90 }, (_, i) => [`a.b.c/${i}${'x'.repeat(300)}`, 1] as [string, number]))
      const sorted = (blocks: { cid: Cid; bytes: unknown }[]) =>
        blocks.toSorted((a, b) => Buffer.compare(a.cid.bytes, b.cid.bytes))
      await store.repos.snapshot(id, async view => {
        const all = (await store.repos.allNodes(id)).map(({ cid, bytes }) => {
          return { cid, bytes: bytes.length > 2_000 ? LEFT_OUT : Uint8Array.from(bytes) }
        })
        assert.ok(all.some(({ bytes }) => bytes === LEFT_OUT))
        assert.deepEqual(sorted(blocksOf((await view.fewNodes())!)), sorted(all))
      })
      const { nodes } = await store.repos.counts(id)
      const more = Array.from({ length: FEW_NODES + 1 - nodes }, (_, i) => {
        const bytes = Buffer.from(`${i}`)
        return { account: id, cid: Buffer.from(Cid.ofCbor(bytes).bytes), rev: 'a', bytes }
      })
      await db.kysely.insertInto('node').values(more.slice(1)).execute()
      await store.repos.snapshot(id, async view => {
        assert.equal(blocksOf((await view.fewNodes())!).length, FEW_NODES)
      })
      await db.kysely.insertInto('node').values(more[0]!).execute()
      await store.repos.snapshot(id, async view => assert.equal(await view.fewNodes(), null))
    })

    test('nodes come in the order asked for, without large and old ones', async t => {
      const { store, id, write } = await open(t)
      const many = (from: number, rest = '') =>
        Array.from({ length: 90 }, (_, i) => [`a.b.c/${from + i}${rest}`, i] as [string, number])
      const { rev: before } = await write(...many(1_000))
      await write(...many(2_000), ...many(0, 'x'.repeat(300)))
      await store.repos.snapshot(id, async view => {
        const all = await store.repos.allNodes(id)
        const revs = new Map(
          await Promise.all(all.map(async ({ cid }) => [cid.key, (await view.node(cid)).rev] as const)),
        )
        const large = all.filter(node => node.bytes.length > 2_000)
        const old = all.filter(node => revs.get(node.cid.key)! <= before)
        const nodes = [...large.slice(0, 3), ...old.slice(0, 3), ...all].slice(0, NODES_AT_ONCE_MAX)
        const cids = (of: readonly Block[]) => Buffer.concat(of.map(({ cid }) => cid.bytes))
        for (const since of ['', before]) {
          const expected = nodes.map(({ cid, bytes }) => {
            const isOld = revs.get(cid.key)! <= since
            return { cid, bytes: isOld ? OLD : bytes.length > 2_000 ? LEFT_OUT : Uint8Array.from(bytes) }
          })
          for (const what of since === '' ? [LEFT_OUT] : [LEFT_OUT, OLD]) {
            assert.ok(expected.some(({ bytes }) => bytes === what))
          }
          assert.deepEqual(blocksOf(await view.nodes(cids(nodes), since)), expected)
        }
        const missing = { cid: Cid.ofCbor(new Uint8Array(1)), bytes: new Uint8Array(1) }
        const found = blocksOf(await view.nodes(cids([all[5]!, missing, all[4]!]), ''))
        assert.deepEqual(
          found.map(({ cid }) => cid),
          [all[5]!.cid, all[4]!.cid],
        )
        assert.deepEqual(blocksOf(await view.nodes(cids([missing]), '')), [])
      })
    })
  })
}
