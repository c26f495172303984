// What a store must do, on every database there is.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { describe, test } from 'node:test'
import { Blocks } from '@millisky/core/blocks'
import { utf8 } from '@millisky/core/bytes'
import { encode } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { signCommit } from '@millisky/core/commit'
import { SigningKey } from '@millisky/core/crypto'
import { Refused } from '@millisky/core/errors'
import { commitEvent, decodeFrame, withSeq } from '@millisky/core/event'
import { Tree } from '@millisky/core/mst/tree'
import { apply, type Change, type Head, type Write } from '@millisky/core/repo'
import { asDatetime, asDid, asHandle, asNsid, type Did, type Tid } from '@millisky/core/syntax'
import { encodeTid } from '@millisky/core/tid'
import { type Db, openDb } from '@millisky/server/db/db'
import { testDatabases } from '@millisky/server/db/testing'
import { framesOf } from '@millisky/server/log/frame-wire'
import { openSqlLog } from '@millisky/server/log/sql'
import { pending } from '../repos.ts'
import { migrations, type PdsSchema } from './schema.ts'
import { createSqlStore } from './sql.ts'
import { type Account, HeadMoved, type NewAccount, type RecordWrite, type Store, Taken } from './store.ts'

const TIME = asDatetime('2026-01-02T03:04:05.678Z')
const secretOf = (name: string) => new Uint8Array(createHash('sha256').update(name).digest())
const didOf = (name: string): Did => asDid(`did:web:${name}.example`)
const keyOf = (name: string) => SigningKey.fromPrivate('k256', secretOf(name))
const rev = (n: number): Tid => encodeTid(n, 0)

/** An account's repository followed by hand. */
class Scribe {
  readonly name: string
  readonly did: Did
  readonly blocks = new Blocks()
  head: Head
  account!: Account
  #rev = 1

  constructor(name: string) {
    this.name = name
    this.did = didOf(name)
    this.head = this.first.head
    for (const node of this.first.nodes) this.blocks.add(node)
  }

  get first(): Change {
    return apply({ did: this.did, head: null, blocks: new Blocks(), writes: [], rev: rev(1), key: keyOf(this.name) })
  }

  get newAccount(): NewAccount {
    const { head, commit, nodes } = this.first
    return {
      did: this.did,
      handle: asHandle(`${this.name}.test`),
      email: `${this.name.toUpperCase()}@example.com`,
      password: 'phc',
      createdAt: 1_000,
      deactivatedAt: null,
      key: { curve: 'k256', secret: secretOf(this.name) },
      repo: { head, commit, nodes },
    }
  }

  compute(writes: Write[]): Change {
    const { did, head, blocks } = this
    return apply({ did, head, blocks, writes, rev: rev(++this.#rev), key: keyOf(this.name) })
  }

  async commit(store: Store, change: Change, records: RecordWrite[], now = 5_000): Promise<void> {
    const { head, commit, nodes, lost } = change
    const events = [pending(this.did, commitEvent(change, TIME))]
    const prev = change.prev!
    await store.repos.commit({
      account: this.account.id,
      prev,
      head,
      commit,
      gained: nodes,
      lost,
      records,
      events,
      now,
    })
    this.head = head
    for (const cid of lost) this.blocks.delete(cid)
    for (const node of nodes) this.blocks.add(node)
  }

  /** Writes records that hold a number each, or deletes those that have none. */
  async write(store: Store, ...wanted: [path: string, n: number | string | null, blobs?: Cid[], subject?: string][]) {
    const writes: Write[] = []
    const records: RecordWrite[] = []
    for (const [path, n, blobs = [], subject = null] of wanted) {
      if (n === null) {
        writes.push({ action: 'delete', path })
        records.push({ action: 'delete', path })
        continue
      }
      const bytes = encode({ n })
      const action = (await store.repos.record(this.account.id, path)) ? 'update' : 'create'
      const cid = Cid.ofCbor(bytes)
      writes.push({ action, path, cid, bytes })
      records.push({ action, path, cid, bytes, blobs, subject })
    }
    await this.commit(store, this.compute(writes), records)
  }
}

async function scribe(store: Store, name: string): Promise<Scribe> {
  const made = new Scribe(name)
  made.account = await store.accounts.create(made.newAccount, [])
  return made
}

async function openStore(url: string): Promise<Store> {
  const db = await openDb<PdsSchema>(url, { migrations })
  const log = await openSqlLog(db as unknown as Db<never>, { withSeq, now: () => 1_000, pollMs: 0 })
  return createSqlStore(db, log)
}

/** Waits until readers see the log up to `head`: on PostgreSQL they hear of a commit a little later. */
async function until(store: Store, head: number): Promise<void> {
  while (store.log.head < head) await store.log.bell.wait(AbortSignal.timeout(10_000))
}

/** All events, of which the last is `head`. */
async function seqs(store: Store, head: number): Promise<{ seq: number; did: string }[]> {
  await until(store, head)
  const found: { seq: number; did: string }[] = []
  for (let at = 0; ; ) {
    const batch = await store.log.read(at, { bytes: 1 << 20 })
    if (batch.last <= at) return found
    at = batch.last
    for (const frame of framesOf(batch.wire)) {
      const { seq, repo, did } = decodeFrame(frame).body
      found.push({ seq: seq as number, did: (repo ?? did) as string })
    }
  }
}

for (const { name, skip, url } of testDatabases()) {
  describe(`store on ${name}`, { skip }, () => {
    const withStore = (title: string, run: (store: Store, reopen: () => Promise<Store>) => Promise<void>) =>
      test(title, async t => {
        const at = await url(t)
        let store = await openStore(at)
        try {
          await run(store, async () => {
            await store.close()
            store = await openStore(at)
            return store
          })
        } finally {
          await store.close()
        }
      })

    withStore('an account is found by each of its names', async store => {
      const { account } = await scribe(store, 'alice')
      assert.equal(account.email, 'alice@example.com')
      assert.deepEqual(await store.accounts.byId(account.id), account)
      assert.deepEqual(await store.accounts.byDid(didOf('alice')), account)
      assert.deepEqual(await store.accounts.byHandle(asHandle('alice.test')), account)
      assert.deepEqual(await store.accounts.byEmail('Alice@Example.com'), account)
      assert.equal(await store.accounts.password(account.id), 'phc')
      assert.equal(await store.accounts.byDid(didOf('bob')), null)
      assert.equal(await store.accounts.count(), 1)
    })

    withStore('unique values are unique, and what fails leaves nothing', async store => {
      const alice = await scribe(store, 'alice')
      const bob = new Scribe('bob')
      const wanted = bob.newAccount
      const event = pending(bob.did, commitEvent(bob.first, TIME))
      const refusal = async (change: Partial<NewAccount>, what: string) => {
        const failed = store.accounts.create({ ...wanted, ...change }, [event])
        await assert.rejects(failed, error => error instanceof Taken && error.what === what)
      }
      await refusal({ did: alice.did }, 'did')
      await refusal({ handle: alice.newAccount.handle }, 'handle')
      await refusal({ email: 'alice@EXAMPLE.com' }, 'email')
      assert.equal(store.log.head, 0)
      assert.equal(await store.accounts.count(), 1)
      bob.account = await store.accounts.create(wanted, [event])
      assert.deepEqual(await seqs(store, 1), [{ seq: 1, did: bob.did }])
      const taken = store.accounts.update(bob.account.id, { handle: asHandle('alice.test') }, [event])
      await assert.rejects(taken, Taken)
      await store.accounts.update(bob.account.id, { handle: null, email: null, takedown: 'ref', deactivatedAt: 7 }, [
        event,
      ])
      const after = await store.accounts.byDid(bob.did)
      assert.deepEqual(after, { ...bob.account, handle: null, email: null, takedown: 'ref', deactivatedAt: 7 })
      assert.equal((await store.repos.state(bob.did))!.status, 'takendown')
      await until(store, 2)
    })

    withStore('a commit changes head, records, nodes and log together', async (store, reopen) => {
      const alice = await scribe(store, 'alice')
      await alice.write(store, ['a.b.c/1', 1], ['a.b.c/2', 2])
      await alice.write(store, ['a.b.c/1', 3], ['a.b.c/2', null], ['a.b.d/1', 4])
      const check = async (store: Store) => {
        const state = (await store.repos.state(alice.did))!
        assert.deepEqual(state.head, alice.head)
        assert.deepEqual(state.key, { curve: 'k256', secret: secretOf('alice') })
        const nodes = await store.repos.nodes(
          alice.account.id,
          [...alice.blocks].map(block => block.cid),
        )
        assert.equal(nodes.length, alice.blocks.size)
        assert.deepEqual(await store.repos.counts(alice.account.id), { nodes: nodes.length, records: 2 })
        const record = (await store.repos.record(alice.account.id, 'a.b.c/1'))!
        assert.deepEqual([record.bytes, record.rev], [encode({ n: 3 }), rev(3)])
        assert.equal(await store.repos.record(alice.account.id, 'a.b.c/2'), null)
        const cids = [alice.head.commit, alice.head.data, record.cid, Cid.ofCbor(utf8('no'))]
        await store.repos.snapshot(alice.account.id, async view => {
          for (const [i, cid] of cids.entries()) {
            const bytes = await view.block(cid)
            assert.deepEqual([await view.has(cid), bytes !== null], [i < 3, i < 3])
            if (bytes) assert.ok(Cid.ofCbor(bytes).equals(cid))
          }
        })
        assert.deepEqual(
          await seqs(store, 2),
          [1, 2].map(seq => ({ seq, did: alice.did })),
        )
      }
      await check(store)
      await check(await reopen())
    })

    withStore('a commit on a head that has moved changes nothing', async store => {
      const alice = await scribe(store, 'alice')
      const create = (n: number): [Change, RecordWrite[]] => {
        const bytes = encode({ n })
        const write = { action: 'create' as const, path: `a.b.c/${n}`, cid: Cid.ofCbor(bytes), bytes }
        return [alice.compute([write]), [{ ...write, blobs: [], subject: null }]]
      }
      const [first, second] = [create(1), create(2)]
      await alice.commit(store, ...first)
      await assert.rejects(alice.commit(store, ...second), HeadMoved)
      assert.deepEqual((await store.repos.state(alice.did))!.head, first[0].head)
      assert.equal(await store.repos.record(alice.account.id, 'a.b.c/2'), null)
      await until(store, 1)
      assert.equal(store.log.head, 1)
    })

    withStore('writes of many accounts at once: one that fails fails alone', async store => {
      const many = await Promise.all(Array.from({ length: 12 }, (_, i) => scribe(store, `user${i}`)))
      const results = await Promise.allSettled(
        many.map(async (one, i) => {
          if (i === 5) one.head = { ...one.head, commit: Cid.ofCbor(utf8('elsewhere')) }
          await one.write(store, ['a.b.c/1', i])
        }),
      )
      assert.deepEqual(
        results.flatMap((result, i) => (result.status === 'rejected' ? [i] : [])),
        [5],
      )
      const events = await seqs(store, 11)
      assert.deepEqual(
        events.map(event => event.seq),
        Array.from({ length: 11 }, (_, i) => i + 1),
      )
      assert.equal(new Set(events.map(event => event.did)).size, 11)
    })

    withStore('records by collection and by subject', async store => {
      const alice = await scribe(store, 'alice')
      const [c, d] = [asNsid('a.b.c'), asNsid('a.b.d')]
      await alice.write(
        store,
        ['a.b.c/1', 1, [], 'x'],
        ['a.b.c/2', 2, [], 'x'],
        ['a.b.d/1', 3, [], 'x'],
        ['a.b.c/3', 4, [], 'y'],
        ['a.b.cc/1', 5],
      )
      const { id } = alice.account
      const paths = async (list: object) =>
        (await store.repos.records(id, { collection: c, limit: 10, ...list })).map(record => record.path)
      assert.deepEqual(await paths({}), ['a.b.c/3', 'a.b.c/2', 'a.b.c/1'])
      assert.deepEqual(await paths({ reverse: true, limit: 2 }), ['a.b.c/1', 'a.b.c/2'])
      assert.deepEqual(await paths({ cursor: '3' }), ['a.b.c/2', 'a.b.c/1'])
      assert.deepEqual(await paths({ cursor: '1', reverse: true }), ['a.b.c/2', 'a.b.c/3'])
      assert.deepEqual(await store.repos.collections(id), ['a.b.c', 'a.b.cc', 'a.b.d'])
      assert.deepEqual(await store.repos.recordsAbout(id, c, 'x'), ['a.b.c/1', 'a.b.c/2'])
      assert.deepEqual(await store.repos.recordsAbout(id, d, 'x'), ['a.b.d/1'])
      await alice.write(store, ['a.b.c/1', null], ['a.b.c/2', 6, [], 'z'])
      assert.deepEqual(await store.repos.recordsAbout(id, c, 'x'), [])
      assert.deepEqual(await store.repos.recordsAbout(id, c, 'z'), ['a.b.c/2'])
    })

    withStore('blobs are held as long as a record refers to them', async store => {
      const alice = await scribe(store, 'alice')
      const { id } = alice.account
      const [x, y, gone] = ['x', 'y', 'gone'].map(text => Cid.ofRaw(utf8(text))) as [Cid, Cid, Cid]
      for (const cid of [x, y]) await store.blobs.put(id, { cid, mimeType: 'a/b', size: 1 }, 100)
      const loose = async (cid: Cid) => (await store.blobs.get(id, cid))?.looseSince
      assert.deepEqual([await loose(x), await loose(y)], [100, 100])
      await alice.write(store, ['a.b.c/1', 1, [x, gone]], ['a.b.c/2', 2, [x]])
      assert.deepEqual([await loose(x), await loose(y)], [null, 100])
      const referenced = (list: object = {}) => store.blobs.referenced(id, { limit: 10, ...list })
      assert.deepEqual(new Set((await referenced()).map(String)), new Set([String(x), String(gone)]))
      assert.equal((await referenced({ since: rev(2) })).length, 0)
      assert.equal((await referenced({ since: rev(1) })).length, 2)
      assert.equal((await referenced({ after: (await referenced())[0] })).length, 1)
      assert.deepEqual(
        (await store.blobs.missing(id, { limit: 10 })).map(({ cid, path }) => [String(cid), path]),
        [[String(gone), 'a.b.c/1']],
      )
      assert.deepEqual(await store.blobs.counts(id), { referenced: 2, present: 1 })
      await alice.write(store, ['a.b.c/1', 3])
      assert.equal(await loose(x), null)
      await alice.write(store, ['a.b.c/2', null])
      assert.equal(await loose(x), 5_000)
      await alice.write(store, ['a.b.c/1', 4, [x]], ['a.b.c/3', 1, [y]])
      // Moved from one record to another in one commit: never loose.
      await alice.write(store, ['a.b.c/1', null], ['a.b.c/4', 1, [x]])
      assert.deepEqual([await loose(x), await loose(y)], [null, null])
      assert.equal((await store.blobs.put(id, { cid: x, mimeType: 'c/d', size: 1 }, 9_000)).looseSince, null)
      await alice.write(store, ['a.b.c/3', null])
      assert.deepEqual(
        (await store.blobs.loose(5_001, 10)).map(found => [found.did, String(found.blob.cid)]),
        [[alice.did, String(y)]],
      )
      assert.deepEqual(await store.blobs.removeLoose(id, [x, y], 5_000), [])
      assert.deepEqual(await store.blobs.removeLoose(id, [x, y], 5_001), [y])
      assert.equal(await loose(y), undefined)
      assert.equal(await store.blobs.takedown(id, x, 'ref'), true)
      assert.equal((await store.blobs.get(id, x))!.takedown, 'ref')
      await alice.write(store, ['a.b.c/4', null])
      assert.deepEqual(await store.blobs.loose(99_999, 10), [])
      assert.deepEqual(await store.blobs.removeLoose(id, [x], 99_999), [])
    })

    withStore('a blob that an import has referred to is held from its arrival', async store => {
      const alice = await scribe(store, 'alice')
      const cid = Cid.ofRaw(utf8('x'))
      await alice.write(store, ['a.b.c/1', 1, [cid]])
      const { looseSince } = await store.blobs.put(alice.account.id, { cid, mimeType: 'a/b', size: 1 }, 100)
      assert.equal(looseSince, null)
    })

    withStore('a snapshot does not move', async store => {
      const alice = await scribe(store, 'alice')
      await alice.write(store, ['a.b.c/1', 1], ['a.b.c/2', 2])
      const before = alice.head
      const nodes = [...alice.blocks].map(block => block.cid)
      await store.repos.snapshot(alice.account.id, async view => {
        await alice.write(store, ['a.b.c/1', null], ['a.b.c/3', 3])
        assert.deepEqual(view.head, before)
        assert.ok(view.commit.cid.equals(before.commit))
        for (const cid of nodes) assert.equal((await view.node(cid)).rev, rev(2))
        assert.deepEqual(
          (await view.records('', 10)).map(record => record.path),
          ['a.b.c/1', 'a.b.c/2'],
        )
        assert.equal((await view.records('a.b.c/1', 10)).length, 1)
        assert.ok(await view.record('a.b.c/1'))
        assert.equal(await view.record('a.b.c/3'), null)
      })
      const heads = await store.repos.listHeads(0, 10)
      assert.deepEqual(
        heads.map(({ account, rev, commit }) => [account.did, rev, commit.toString()]),
        [[alice.did, alice.head.rev, alice.head.commit.toString()]],
      )
    })

    withStore('accounts are found by collection, a bounded number looked at', async store => {
      const scribes: Scribe[] = []
      for (const name of ['a', 'b', 'c', 'd', 'e']) scribes.push(await scribe(store, name))
      for (const i of [0, 2, 3, 4]) await scribes[i]!.write(store, ['a.b.c/1', i], ['a.b.cd/1', i])
      await scribes[1]!.write(store, ['a.b.cd/1', 1], ['a.b.b/1', 1])
      await store.accounts.update(scribes[3]!.account.id, { takedown: 'x' }, [])
      const ids = scribes.map(({ account }) => account.id)
      const list = (after: number, limit: number, look: number) =>
        store.repos.listByCollection(asNsid('a.b.c'), after, { limit, look })
      const at = (...of: number[]) => of.map(i => ({ id: ids[i]!, did: scribes[i]!.did }))
      assert.deepEqual(await list(0, 10, 100), { found: at(0, 2, 4), last: null })
      assert.deepEqual(await list(0, 2, 100), { found: at(0, 2), last: ids[2] })
      assert.deepEqual(await list(0, 10, 3), { found: at(0, 2), last: ids[2] })
      assert.deepEqual(await list(ids[2]!, 10, 1), { found: [], last: ids[3] })
      assert.deepEqual(await list(ids[4]!, 10, 1), { found: [], last: null })
    })

    withStore('an import replaces a whole repository, or nothing', async store => {
      const alice = await scribe(store, 'alice')
      const { id } = alice.account
      const [x, y] = ['x', 'y'].map(text => Cid.ofRaw(utf8(text))) as [Cid, Cid]
      for (const cid of [x, y]) await store.blobs.put(id, { cid, mimeType: 'a/b', size: 1 }, 100)
      const many = Array.from({ length: 150 }, (_, i): [string, number] => [`a.b.c/${i + 100}`, i])
      await alice.write(store, ...many, ['a.b.c/x', 1, [x], 'old'])
      const before = await store.repos.paths(id)
      assert.deepEqual(
        before.map(([path]) => path),
        [...many.map(([path]) => path), 'a.b.c/x'],
      )
      const bytes = encode({ n: 'new' })
      const cid = Cid.ofCbor(bytes)
      // Three of four go, one stays as it is, one changes, one comes.
      const staying = before.filter((_, i) => i % 4 === 0 && i > 0)
      const tree = Tree.build([...staying, ['a.b.c/x', cid] as const, ['a.b.d/1', cid] as const])
      const { block } = signCommit({ did: alice.did, data: tree.root, rev: rev(9) }, keyOf('alice'))
      const head = { did: alice.did, commit: block.cid, rev: rev(9), data: tree.root }
      const stays = new Set(staying.map(([path]) => path as string))
      const records: RecordWrite[] = [
        ...many.filter(([path]) => !stays.has(path)).map(([path]): RecordWrite => ({ action: 'delete', path })),
        { action: 'update', path: 'a.b.c/x', cid, bytes, blobs: [y], subject: 'new' },
        { action: 'create', path: 'a.b.d/1', cid, bytes, blobs: [], subject: null },
      ]
      const events = [pending(alice.did, commitEvent(alice.first, TIME))]
      const nodes = () => tree.nodes()
      const given = { account: id, prev: alice.head, head, commit: block, nodes, events, now: 7_000 }
      const failing = {
        ...given,
        *records() {
          yield* records
          throw new Error('no more')
        },
      }
      await assert.rejects(store.repos.import(failing), /no more/)
      await assert.rejects(store.repos.import({ ...given, prev: head, records: () => records }), HeadMoved)
      assert.deepEqual((await store.repos.paths(id)).map(String), before.map(String))
      assert.equal((await store.repos.allNodes(id)).length, alice.blocks.size)
      await store.repos.import({ ...given, records: () => records })
      assert.deepEqual((await store.repos.state(alice.did))!.head, head)
      assert.deepEqual((await store.repos.paths(id)).map(String), [...tree].map(String))
      const held = new Blocks(await store.repos.allNodes(id))
      assert.deepEqual(
        new Set([...held].map(node => node.cid.key)),
        new Set([...tree.nodes()].map(node => node.cid.key)),
      )
      assert.deepEqual(await store.repos.recordsAbout(id, asNsid('a.b.c'), 'old'), [])
      assert.deepEqual(
        [(await store.blobs.get(id, x))!.looseSince, (await store.blobs.get(id, y))!.looseSince],
        [7_000, null],
      )
      assert.equal((await seqs(store, 2)).length, 2)
    })

    withStore('removing an account removes all of it, its events too, and no seq comes twice', async store => {
      const [alice, bob] = [await scribe(store, 'alice'), await scribe(store, 'bob')]
      await alice.write(store, ['a.b.c/1', 1, [Cid.ofRaw(utf8('x'))], 'x'])
      await bob.write(store, ['a.b.c/1', 1])
      await alice.write(store, ['a.b.c/2', 2])
      await store.accounts.remove(alice.account.id, [pending(alice.did, commitEvent(alice.first, TIME))])
      assert.deepEqual(await seqs(store, 4), [
        { seq: 2, did: bob.did },
        { seq: 4, did: alice.did },
      ])
      assert.equal(await store.accounts.byDid(alice.did), null)
      assert.deepEqual(await store.repos.counts(alice.account.id), { nodes: 0, records: 0 })
      const again = await scribe(store, 'alice')
      assert.ok(again.account.id > bob.account.id)
    })

    withStore('preferences keep their order', async store => {
      const { id } = (await scribe(store, 'alice')).account
      const preferences = ['b', 'a', 'c'].map(type => ({ type, json: JSON.stringify({ $type: type }) }))
      await store.accounts.setPreferences(id, preferences)
      assert.deepEqual(await store.accounts.preferences(id), preferences)
      await store.accounts.setPreferences(id, preferences.slice(1))
      assert.deepEqual(await store.accounts.preferences(id), preferences.slice(1))
    })

    withStore('sessions rotate once', async store => {
      const { id: account } = (await scribe(store, 'alice')).account
      const session = (id: string, expiresAt = 1_000) => ({
        id,
        account,
        createdAt: 1,
        expiresAt,
        next: null,
        appPassword: null,
      })
      await store.sessions.add(session('a'))
      const next = await Promise.all(['b', 'c', 'd'].map(id => store.sessions.rotate('a', session(id), 500)))
      assert.equal(new Set(next).size, 1)
      assert.equal((await store.sessions.byId('a'))!.expiresAt, 500)
      assert.equal((await store.sessions.byId(next[0]!))!.expiresAt, 1_000)
      assert.equal(await store.sessions.rotate('unknown', session('e'), 500), null)
      assert.equal(await store.sessions.removeExpired(501), 1)
      assert.equal(await store.sessions.byId('a'), null)
      await store.sessions.remove(next[0]!)
      assert.equal(await store.sessions.byId(next[0]!), null)
    })

    withStore('app passwords go with their sessions', async store => {
      const { id: account } = (await scribe(store, 'alice')).account
      const password = (name: string) => ({ name, password: 'phc', privileged: name === 'p', createdAt: 1 })
      for (const name of ['p', 'a']) await store.sessions.addAppPassword(account, password(name))
      await assert.rejects(store.sessions.addAppPassword(account, password('p')), Taken)
      assert.deepEqual(await store.sessions.appPasswords(account), [password('a'), password('p')])
      for (const [id, appPassword] of [
        ['1', 'p'],
        ['2', 'a'],
        ['3', null],
      ] as const) {
        await store.sessions.add({ id, account, createdAt: 1, expiresAt: 9, next: null, appPassword })
      }
      assert.equal(await store.sessions.removeAppPassword(account, 'p'), true)
      assert.equal(await store.sessions.removeAppPassword(account, 'p'), false)
      assert.equal(await store.sessions.byId('1'), null)
      assert.ok(await store.sessions.byId('2'))
      await store.sessions.removeOf(account)
      assert.equal(await store.sessions.byId('3'), null)
    })

    withStore('an invite is used as often as it says', async store => {
      const code = { code: 'x', uses: 2, forAccount: 'admin', createdBy: 'admin', createdAt: 1 }
      await store.tickets.addInvites([code])
      const results = await Promise.allSettled(
        ['a', 'b', 'c'].map(name => store.accounts.create({ ...new Scribe(name).newAccount, invite: 'x' }, [])),
      )
      const failed = results.filter(result => result.status === 'rejected')
      assert.equal(failed.length, 1)
      assert.ok(failed[0]!.reason instanceof Refused && failed[0]!.reason.error === 'InvalidInviteCode')
      assert.equal(await store.accounts.count(), 2)
      assert.equal((await store.tickets.invite('x'))!.usedBy.length, 2)
      await store.tickets.disableInvites(['x'], [])
      assert.equal((await store.tickets.invitesFor('admin'))[0]!.disabled, true)
      assert.equal(await store.tickets.invite('y'), null)
    })

    withStore('mail codes, reserved keys and secrets', async (store, reopen) => {
      const { id } = (await scribe(store, 'alice')).account
      const { tickets } = store
      await tickets.putEmailToken(id, 'confirm', { token: 'A', requestedAt: 1 })
      await tickets.putEmailToken(id, 'confirm', { token: 'B', requestedAt: 2 })
      assert.deepEqual(await tickets.emailToken(id, 'confirm'), { token: 'B', requestedAt: 2 })
      assert.equal(await tickets.accountOfEmailToken('confirm', 'A'), null)
      assert.equal(await tickets.accountOfEmailToken('confirm', 'B'), id)
      await tickets.removeEmailToken(id, 'confirm')
      assert.equal(await tickets.emailToken(id, 'confirm'), null)
      const key = { curve: 'k256' as const, secret: secretOf('key') }
      assert.equal(await tickets.reserveKey('did:key:1', didOf('x'), key, 1), 'did:key:1')
      assert.equal(await tickets.reserveKey('did:key:2', didOf('x'), key, 2), 'did:key:1')
      assert.equal(await tickets.reserveKey('did:key:3', null, key, 3), 'did:key:3')
      assert.deepEqual(await tickets.reservedKey(didOf('x')), key)
      assert.deepEqual(await tickets.reservedKey('did:key:3'), key)
      await tickets.removeReservedKey('did:key:1')
      assert.equal(await tickets.reservedKey(didOf('x')), null)
      const made = await tickets.secret('jwt', () => secretOf('1'))
      assert.deepEqual(await tickets.secret('jwt', () => secretOf('2')), made)
      const again = await reopen()
      assert.deepEqual(await again.tickets.secret('jwt', () => secretOf('3')), made)
      await again.ping()
    })
  })
}
