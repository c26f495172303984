// Imports that nobody sees yet: in parts on SQLite, so that others can write meanwhile; the same in the end on each database.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { encode } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { signCommit } from '@millisky/core/commit'
import { withSeq } from '@millisky/core/event'
import { Tree } from '@millisky/core/mst/tree'
import { asDid, asHandle, type Did } from '@millisky/core/syntax'
import { TidClock } from '@millisky/core/tid'
import { type Db, openDb } from '@millisky/server/db/db'
import { testDatabases } from '@millisky/server/db/testing'
import { Lanes } from '@millisky/server/lanes'
import { openSqlLog } from '@millisky/server/log/sql'
import { Lifecycle } from '../lifecycle.ts'
import { Repos } from '../repos.ts'
import { migrations, type PdsSchema } from './schema.ts'
import { createSqlStore } from './sql.ts'
import type { RepoImport } from './store.ts'

const now = () => 1_700_000_000_000

for (const database of testDatabases()) {
  describe(`hidden imports into ${database.name}`, { skip: database.skip }, () => {
    test('cut short they leave the head, are found out, and the next one makes it good', async t => {
      const db = await openDb<PdsSchema>(await database.url(t), { migrations })
      const store = createSqlStore(db, await openSqlLog(db as unknown as Db<never>, { withSeq, now }))
      t.after(() => store.close())
      const repos = new Repos({ store, lanes: new Lanes(), tids: new TidClock({ now, clockId: 1 }), now })
      const lifecycle = new Lifecycle(repos)
      const open = (name: string, did: Did, deactivated: boolean) => {
        const key = { curve: 'k256' as const, secret: new Uint8Array(32).fill(7) }
        return lifecycle.open({ did, handle: asHandle(`${name}.test`), email: null, password: null, key, deactivated })
      }
      const [did, other] = [asDid('did:web:alice.example'), asDid('did:web:bob.example')]
      const { id } = await open('alice', did, true)
      await open('bob', other, false)

      const state = (await store.repos.state(did))!
      const records = Array.from({ length: 1_000 }, (_, i) => {
        const bytes = encode({ i })
        const path = `a.b.c/${1_000 + i}`
        return { action: 'create' as const, path, cid: Cid.ofCbor(bytes), bytes, blobs: [], subject: null }
      })
      const tree = Tree.build(records.map(({ path, cid }) => [path, cid] as const))
      const rev = repos.nextRev(state.head.rev)
      const { block } = signCommit({ did, data: tree.root, rev }, repos.signingKey(state.key))
      const head = { did, commit: block.cid, rev, data: tree.root }
      const nodes = () => tree.nodes()
      const given: Omit<RepoImport, 'records'> = {
        account: id,
        prev: state.head,
        head,
        commit: block,
        nodes,
        events: [],
        now: 1,
        hidden: true,
      }
      // On SQLite one long transaction would hold this up until its end.
      const begun = Promise.withResolvers<void>()
      const written = begun.promise.then(() => repos.resign(other))
      const cut = function* () {
        for (const record of records.slice(0, 700)) {
          yield record
          if (record.path === 'a.b.c/1250') begun.resolve()
        }
        throw new Error('power cut')
      }
      await assert.rejects(store.repos.import({ ...given, records: cut }), /power cut/)
      assert.ok((await written).commit, 'somebody else has written')
      assert.deepEqual((await store.repos.state(did))!.head, state.head)
      const left = await store.repos.counts(id)
      if (database.name === 'sqlite') {
        assert.ok(left.records > 0 && left.records < 1_000, `${left.records} records are left`)
        await assert.rejects(lifecycle.activate(did), /came in part only/)
      } else assert.deepEqual(left, { nodes: 1, records: 0 })
      const here = new Map((await store.repos.paths(id)).map(([path, cid]) => [path as string, cid]))
      const rest = () => records.filter(({ path }) => !here.has(path))
      await store.repos.import({ ...given, records: rest })
      assert.deepEqual(await store.repos.counts(id), { nodes: [...tree.nodes()].length, records: 1_000 })
      assert.deepEqual((await store.repos.state(did))!.head, head)
      await lifecycle.activate(did)
    })
  })
}
