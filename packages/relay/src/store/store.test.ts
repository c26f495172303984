import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Did, Tid } from '@millisky/core/syntax'
import { testDid } from '@millisky/core/testing-repos'
import { openDb } from '@millisky/server/db/db'
import { testDatabases } from '@millisky/server/db/testing'
import { migrations, type RelaySchema } from './schema.ts'
import { createSqlStore } from './sql.ts'
import type { NewHost, RelayStore, StoredAccount } from './store.ts'

const host = (hostname: string, more: Partial<NewHost> = {}): NewHost => ({
  hostname,
  noTls: false,
  status: 'active',
  reason: null,
  statusAt: 1,
  createdAt: 1,
  byAdmin: false,
  cursor: 0,
  policy: 'strict',
  pinned: false,
  streak: 0,
  accounts: 0,
  accountLimit: null,
  perSecond: null,
  perHour: null,
  perDay: null,
  growth: 0,
  growthAt: 1,
  history: [],
  ...more,
})

const account = (n: number, more: Partial<StoredAccount> = {}): StoredAccount => ({
  did: testDid(n),
  host: 1,
  rev: '3kaaaaaaaaa2a' as Tid,
  data: `\x01\x71\xff${String.fromCharCode(n)}`,
  commit: `\x01\x71\x00${String.fromCharCode(n)}`,
  active: true,
  status: null,
  local: null,
  ...more,
})

const sorted = (accounts: StoredAccount[]) => accounts.toSorted((a, b) => (a.did < b.did ? -1 : 1))

for (const database of testDatabases()) {
  describe(`relay store on ${database.name}`, { skip: database.skip }, () => {
    async function open(t: { after(fn: () => Promise<void>): void }): Promise<RelayStore> {
      const db = await openDb<RelaySchema>(await database.url(t), { migrations })
      const store = createSqlStore(db)
      t.after(() => store.close())
      return store
    }

    test('hosts are kept with all they have, and patched field by field', async t => {
      const { hosts } = await open(t)
      const history = [{ at: 5, what: 'offline' as const, detail: 'gone' }]
      const first = await hosts.create(host('a.example.com', { history, cursor: null, accountLimit: 7 }))
      const second = await hosts.create(host('localhost:2583', { noTls: true, byAdmin: true, policy: 'observe' }))
      assert.notEqual(first.id, second.id)
      await hosts.update(first.id, { status: 'banned', reason: 'spam', statusAt: 9, pinned: true })
      await hosts.update(second.id, {})
      assert.deepEqual(await hosts.all(), [
        { ...first, status: 'banned', reason: 'spam', statusAt: 9, pinned: true },
        second,
      ])
      assert.deepEqual(first.history, history)
      await assert.rejects(hosts.create(host('a.example.com')))
    })

    test('only hosts that nobody in charge added count for the day', async t => {
      const { hosts } = await open(t)
      await hosts.create(host('a.example.com', { createdAt: 100 }))
      await hosts.create(host('b.example.com', { createdAt: 200 }))
      await hosts.create(host('c.example.com', { createdAt: 200, byAdmin: true }))
      assert.equal(await hosts.countSince(100), 2)
      assert.equal(await hosts.countSince(101), 1)
      assert.equal(await hosts.countSince(201), 0)
    })

    test('a fold writes accounts, hosts and watermark together and spares what was said here', async t => {
      const { fold, accounts, hosts } = await open(t)
      const { id } = await hosts.create(host('a.example.com'))
      assert.deepEqual([await fold.watermark(), await fold.cursorsAt()], [0, 0])
      await accounts.setLocal(testDid(2), 'takendown')
      const folded = [1, 2, 3].map(n => account(n))
      await fold.save({ watermark: 3, accounts: folded, hosts: [{ id, cursor: 40, streak: 2, accounts: 3 }] })
      assert.equal(await fold.watermark(), 3)
      assert.deepEqual(
        sorted(await accounts.load([testDid(1), testDid(2), testDid(3), testDid(4)])),
        sorted([folded[0]!, { ...folded[1]!, local: 'takendown' }, folded[2]!]),
      )
      const [stored] = await hosts.all()
      assert.deepEqual([stored?.cursor, stored?.streak, stored?.accounts, stored?.status], [40, 2, 3, 'active'])
      const inactive = account(1, { active: false, status: 'deactivated', rev: null, data: null, commit: null })
      await fold.save({ watermark: 9_000_000_000, cursorsAt: 8_000_000_000, accounts: [inactive], hosts: [] })
      await fold.save({ watermark: 9_000_000_000, accounts: [], hosts: [] })
      assert.equal(await fold.cursorsAt(), 8_000_000_000, 'what does not know cursors leaves it')
      assert.deepEqual(await accounts.load([testDid(1)]), [inactive])
      assert.equal(await fold.watermark(), 9_000_000_000)
      await accounts.setLocal(testDid(2), null)
      assert.deepEqual(await accounts.load([testDid(2)]), [folded[1]])
    })

    test('collections of accounts change with the fold, and are listed page by page', async t => {
      const { fold, directory } = await open(t)
      const [a, b, c] = [1, 2, 3].map(testDid).sort() as [Did, Did, Did]
      let watermark = 0
      const save = (did: Did, pairs: Record<string, boolean>, emptied = false) =>
        fold.save({
          watermark: ++watermark,
          accounts: [],
          hosts: [],
          directory: [{ did, emptied, pairs: new Map(Object.entries(pairs)) }],
        })
      for (const did of [c, a, b]) await save(did, { 'a.b.c': true, '': true, 'a.b.d': did !== b })
      assert.deepEqual(await directory.list('a.b.c', '', 10), [a, b, c])
      assert.deepEqual(await directory.list('a.b.c', a, 1), [b])
      assert.deepEqual(await directory.list('a.b.d', '', 10), [a, c])
      assert.deepEqual(await directory.list('a.b', '', 10), [])
      assert.equal(await directory.count(''), 3)
      await save(a, { 'a.b.c': true, 'a.b.d': false })
      await save(b, { 'a.b.e': true }, true)
      assert.deepEqual(await directory.list('a.b.c', '', 10), [a, c])
      assert.deepEqual(await directory.list('a.b.d', '', 10), [c])
      assert.deepEqual(await directory.list('a.b.e', '', 10), [b])
      assert.equal(await directory.count(''), 2)
      assert.equal(await fold.watermark(), watermark)
    })

    test('many collections of many accounts are folded at once', async t => {
      const { fold, directory } = await open(t)
      const changes = Array.from({ length: 700 }, (_, n) => ({
        did: testDid(n),
        emptied: n % 7 === 0,
        pairs: new Map([1, 2].map(i => [`a.b.c${i}`, true])),
      }))
      await fold.save({ watermark: 1, accounts: [], hosts: [], directory: changes })
      await fold.save({ watermark: 2, accounts: [], hosts: [], directory: changes })
      assert.deepEqual([await directory.count('a.b.c1'), await directory.count('a.b.c2')], [700, 700])
      const all = changes.map(({ did }) => did).sort()
      assert.deepEqual(await directory.list('a.b.c2', '', 1_000), all)
    })

    test('checkpoints are kept in order and never replaced', async t => {
      const { checkpoints } = await open(t)
      assert.equal(await checkpoints.latest(), null)
      const checkpoint = (last: number) => ({ last, cid: new Uint8Array([1, last]), bytes: new Uint8Array([2, last]) })
      for (const last of [5, 9_000_000_000, 7]) await checkpoints.add(checkpoint(last))
      await assert.rejects(checkpoints.add({ ...checkpoint(5), bytes: new Uint8Array([3]) }))
      assert.deepEqual(await checkpoints.latest(), checkpoint(9_000_000_000))
      assert.deepEqual(await checkpoints.list(5, 1), [checkpoint(7)])
      assert.deepEqual(await checkpoints.list(0, 10), [5, 7, 9_000_000_000].map(checkpoint))
    })

    test('many accounts are folded at once', async t => {
      const { fold, accounts } = await open(t)
      const many = Array.from({ length: 1_203 }, (_, n) => account(n))
      await fold.save({ watermark: 1, accounts: many, hosts: [] })
      const found: Did[] = []
      for (let after = ''; ; ) {
        const page = await accounts.list(after, 500)
        if (page.length === 0) break
        found.push(...page.map(({ did }) => did))
        after = found.at(-1)!
      }
      assert.deepEqual(found, many.map(({ did }) => did).sort())
    })

    test('accounts with a status of ours are listed apart', async t => {
      const { accounts, fold } = await open(t)
      await fold.save({ watermark: 1, accounts: [1, 2, 3].map(n => account(n)), hosts: [] })
      const dids = [testDid(1), testDid(3)].sort()
      for (const did of dids) await accounts.setLocal(did, 'takendown')
      await accounts.setLocal(testDid(2), 'throttled')
      const listed = async (after: string) => (await accounts.listLocal('takendown', after, 1)).map(({ did }) => did)
      assert.deepEqual(await listed(''), [dids[0]])
      assert.deepEqual(await listed(dids[0]!), [dids[1]])
      assert.deepEqual(await listed(dids[1]!), [])
    })

    test('what administrators did is listed from the newest on', async t => {
      const { audit } = await open(t)
      for (const at of [1, 2, 3]) await audit.add({ at, address: '::1', action: 'x/y', params: '{}', status: 200 })
      const [newest, next] = await audit.list(null, 2)
      assert.deepEqual([newest?.at, next?.at, newest?.action], [3, 2, 'x/y'])
      assert.deepEqual(
        (await audit.list(next!.id, 5)).map(({ at }) => at),
        [1],
      )
    })

    test('what administrators did is forgotten by age and by number', async t => {
      const { audit } = await open(t)
      const ats = async () => (await audit.list(null, 9)).map(({ at }) => at)
      for (const at of [1, 2, 3, 4, 5]) await audit.add({ at, address: '', action: '', params: '{}', status: 200 })
      assert.equal(await audit.prune(2, 100), 1)
      assert.deepEqual(await ats(), [5, 4, 3, 2])
      assert.equal(await audit.prune(0, 3), 1)
      assert.equal(await audit.prune(0, 3), 0)
      assert.deepEqual(await ats(), [5, 4, 3])
    })

    test('what siblings are to be told waits in order, per sibling', async t => {
      const { outbox } = await open(t)
      await outbox.add([])
      const [a, b] = ['https://a.example.com', 'https://b.example.com']
      await outbox.add([a, b].map(sibling => ({ sibling, path: '/one', body: '{}', at: 10 })))
      await outbox.add([{ sibling: a, path: '/two', body: '', at: 20 }])
      assert.deepEqual([...(await outbox.count())].sort(), [
        [a, 2],
        [b, 1],
      ])
      const first = await outbox.first(a)
      assert.deepEqual(
        { ...first, id: 0 },
        { id: 0, sibling: a, path: '/one', body: '{}', at: 10, attempts: 0, nextAt: 0, error: null },
      )
      await outbox.failed(first!.id, { attempts: 3, nextAt: 99, error: 'gone' })
      assert.deepEqual(await outbox.first(a), { ...first, attempts: 3, nextAt: 99, error: 'gone' })
      await outbox.remove(first!.id)
      assert.equal((await outbox.first(a))?.path, '/two')
      assert.deepEqual(
        (await outbox.list(first!.id, 9)).map(({ sibling, path }) => [sibling, path]),
        [
          [b, '/one'],
          [a, '/two'],
        ],
      )
      assert.equal(await outbox.expire(20), 1)
      assert.deepEqual([await outbox.first(b), (await outbox.list(0, 9)).length], [null, 1])
    })

    test('bans and settings', async t => {
      const { bans, settings } = await open(t)
      assert.equal(await bans.add('b.com', 1), true)
      assert.equal(await bans.add('a.com', 1), true)
      assert.equal(await bans.add('b.com', 2), false)
      assert.deepEqual(await bans.all(), ['a.com', 'b.com'])
      assert.equal(await bans.remove('b.com'), true)
      assert.equal(await bans.remove('b.com'), false)
      assert.deepEqual(await bans.all(), ['a.com'])
      assert.equal(await settings.get('x'), null)
      await settings.set('x', '1')
      await settings.set('x', '2')
      assert.equal(await settings.get('x'), '2')
    })
  })
}
