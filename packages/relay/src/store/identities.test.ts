import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Did } from '@millisky/core/syntax'
import { testDid, testKey } from '@millisky/core/testing-repos'
import { openDb } from '@millisky/server/db/db'
import { testDatabases } from '@millisky/server/db/testing'
import { packDid } from './identities.ts'
import { migrations, type RelaySchema } from './schema.ts'
import { createSqlStore } from './sql.ts'
import type { StoredIdentity } from './store.ts'

const identity = (n: number, more: Partial<StoredIdentity> = {}): StoredIdentity => ({
  did: testDid(n),
  at: 1_700_000_000_000,
  key: testKey(n % 20, n % 2 ? 'k256' : 'p256').didKey,
  pds: `https://pds${n % 30}.example.com`,
  handle: n % 3 ? `a${n}.bsky.social` : `a${n}.example.com`,
  ...more,
})

const sorted = (identities: StoredIdentity[]) => identities.toSorted((a, b) => (a.did < b.did ? -1 : 1))

test('DIDs have short forms of their own', () => {
  assert.equal(packDid(testDid(1)).length, 15)
  const dids = [...Array.from({ length: 100 }, (_, n) => testDid(n)), 'did:web:abc.example', 'did:web:abc.examplf']
  assert.equal(new Set(dids.map(did => Buffer.from(packDid(did as Did)).toString('hex'))).size, dids.length)
})

for (const database of testDatabases()) {
  describe(`identity store on ${database.name}`, { skip: database.skip }, () => {
    async function open(t: { after(fn: () => Promise<void>): void }) {
      const url = await database.url(t)
      const stores = [createSqlStore(await openDb<RelaySchema>(url, { migrations }))]
      t.after(async () => {
        for (const store of stores) await store.close()
      })
      const again = async () => {
        stores.push(createSqlStore(await openDb<RelaySchema>(url, { migrations })))
        return stores.at(-1)!.identities
      }
      return { identities: stores[0]!.identities, again }
    }

    test('identities are kept, replaced and forgotten', async t => {
      const { identities } = await open(t)
      const first = identity(1)
      const bare = identity(2, { key: null, pds: null, handle: null })
      const web = identity(3, { did: 'did:web:example.com' as Did })
      await identities.put([first, bare, web])
      assert.deepEqual(
        sorted(await identities.load([first.did, bare.did, web.did, testDid(9)])),
        sorted([first, bare, web]),
      )
      const changed = { ...first, at: first.at + 5_000, key: testKey('new').didKey, pds: 'https://new.example.com' }
      await identities.put([changed])
      assert.deepEqual(await identities.load([first.did]), [changed])
      await identities.put([first])
      assert.deepEqual(await identities.load([first.did]), [changed], 'what is older changes nothing')
      await identities.delete(first.did)
      assert.deepEqual(await identities.load([first.did]), [])
      assert.deepEqual(await identities.load([bare.did]), [bare])
    })

    test('many are put at once, and another process reads the same', async t => {
      const { identities, again } = await open(t)
      const many = Array.from({ length: 1_203 }, (_, n) => identity(n))
      await identities.put(many)
      await identities.put([identity(5_000, { pds: 'https://pds1.example.com' })])
      const other = await again()
      assert.deepEqual(sorted(await other.load(many.map(({ did }) => did))), sorted(many))
      assert.equal((await other.load([testDid(5_000)]))[0]?.pds, 'https://pds1.example.com')
    })
  })
}
