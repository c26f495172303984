import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { SigningKey } from '@millisky/core/crypto'
import type { Identity } from '@millisky/core/did'
import {
  type PlcOperation,
  type PlcUpdate,
  plcCid,
  plcTombstone,
  plcUpdate,
  signPlcOperation,
} from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import { signingKey, strongKey, testGenesis, weakKey } from '@millisky/core/testing-plc'
import { openDb } from '@millisky/server/db/db'
import { testDatabases } from '@millisky/server/db/testing'
import type { ExportLine } from '@millisky/server/identity/plc-export'
import { PlcFeed } from './plc-feed.ts'
import { migrations, type RelaySchema } from './store/schema.ts'
import { createSqlStore } from './store/sql.ts'

const HOUR = 3_600_000
const START = Date.parse('2026-01-01T00:00:00Z')
const NOW = Date.parse('2026-06-01T00:00:00Z')
const moved = (last: PlcOperation, host: string, key: SigningKey) =>
  signPlcOperation<PlcUpdate>(
    plcUpdate(last, { services: { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: `https://${host}` } } }),
    key,
  )

let seq = 0
const line = (did: Did, operation: PlcOperation, hours: number): ExportLine => {
  const createdAt = new Date(START + hours * HOUR).toISOString()
  return { seq: ++seq, entry: { did, operation, cid: plcCid(operation), createdAt, nullified: false } }
}
const at = (trueAt: number | null) => ({ seq, cid: null, trueAt })

for (const database of testDatabases()) {
  describe(`export into the store on ${database.name}`, { skip: database.skip }, () => {
    async function stage(t: { after(fn: () => Promise<void>): void }) {
      const store = createSqlStore(await openDb<RelaySchema>(await database.url(t), { migrations }))
      t.after(() => store.close())
      const revised: Identity[] = []
      const forgotten: Did[] = []
      const feedOf = (origin = 'https://plc.example.com') =>
        new PlcFeed({
          origin,
          store: store.plc,
          identities: { revise: identity => void revised.push(identity), forget: did => void forgotten.push(did) },
          supersede: () => {},
          now: () => NOW,
          onRefused: () => {},
        })
      const pdsOf = async (did: Did) => (await store.identities.load([did]))[0]?.pds
      return { store, feedOf, revised, forgotten, pdsOf }
    }

    test('identities are those of the operations in force, across batches, restarts and recoveries', async t => {
      const { feedOf, pdsOf, revised } = await stage(t)
      const feed = feedOf()
      assert.deepEqual(await feed.position(), { seq: 0, cid: null, trueAt: null })
      const [a, b] = [testGenesis(1), testGenesis(2)]
      const stolen = moved(a.first, 'thief.example.com', weakKey)
      await feed.take([line(a.did, a.first, 0), line(b.did, b.first, 1), line(a.did, stolen, 2)], at(null), false)
      assert.equal(await pdsOf(a.did), 'https://thief.example.com')
      const again = feedOf()
      assert.equal((await again.position()).seq, seq)
      const back = moved(a.first, 'home.example.com', strongKey)
      await again.take(
        [line(a.did, back, 3), line(b.did, signPlcOperation(plcTombstone(b.first), strongKey), 4)],
        at(NOW),
        true,
      )
      assert.deepEqual([await pdsOf(a.did), await pdsOf(b.did)], ['https://home.example.com', undefined])
      assert.deepEqual([revised.length, revised[0]?.pds], [1, 'https://home.example.com'])
      assert.deepEqual(await again.position(), at(NOW))
    })

    test('a fetched identity is newer than what the export tells of the past', async t => {
      const { store, feedOf, pdsOf } = await stage(t)
      const feed = feedOf()
      const { did, first } = testGenesis(3)
      const fetched = {
        did,
        at: START + 10 * HOUR,
        key: signingKey.didKey,
        pds: 'https://new.example.com',
        handle: null,
      }
      await store.identities.put([fetched])
      await feed.take([line(did, first, 0)], at(null), false)
      assert.equal(await pdsOf(did), 'https://new.example.com')
      const next = moved(first, 'newer.example.com', strongKey)
      await feed.take([line(did, next, 11)], at(null), false)
      assert.equal(await pdsOf(did), 'https://newer.example.com')
    })

    test('a DID whose operations break the rules is not spoken for any more, other DIDs are', async t => {
      const { feedOf, pdsOf, forgotten } = await stage(t)
      const feed = feedOf()
      const [a, b] = [testGenesis(4), testGenesis(5)]
      const forged = moved(a.first, 'thief.example.com', signingKey)
      const right = moved(a.first, 'home.example.com', strongKey)
      const lines = [line(a.did, a.first, 0), line(a.did, forged, 1), line(b.did, b.first, 2), line(a.did, right, 3)]
      await feed.take([...lines, { seq: ++seq, did: null, problem: 'no DID' }], at(NOW), true)
      assert.deepEqual([await pdsOf(a.did), await pdsOf(b.did)], [undefined, 'https://pds.example.com'])
      assert.deepEqual(
        [feed.covers(a.did), feed.covers(b.did), feed.covers('did:web:x.example' as Did)],
        [false, true, false],
      )
      assert.deepEqual([forgotten, feed.refused], [[a.did], 1])
      const again = feedOf()
      await again.position()
      assert.equal(again.covers(a.did), false)
      const other = feedOf('https://other.example.com')
      assert.equal((await other.position()).seq, 0)
      assert.equal(other.covers(a.did), true)
    })
  })
}
