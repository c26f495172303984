// What a store must do for accounts, their sessions, invites, codes and takedowns, on every database there is.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { describe, test } from 'node:test'
import { withSeq } from '@millisky/core/event'
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
import type { Account, InviteCode, Store } from './store.ts'

const didOf = (name: string): Did => asDid(`did:web:${name}.example`)
const now = () => 1_000_000

for (const database of testDatabases()) {
  describe(`people in a store on ${database.name}`, { skip: database.skip }, () => {
    const withStore = (
      name: string,
      body: (store: Store, add: (name: string, invite?: string) => Promise<Account>) => Promise<void>,
    ) =>
      test(name, async t => {
        const db = await openDb<PdsSchema>(await database.url(t), { migrations })
        const store = createSqlStore(db, await openSqlLog(db as unknown as Db<never>, { withSeq, now }))
        const repos = new Repos({ store, lanes: new Lanes(), tids: new TidClock({ now, clockId: 1 }), now })
        const lifecycle = new Lifecycle(repos)
        const add = (name: string, invite?: string) =>
          lifecycle.open({
            did: didOf(name),
            handle: asHandle(`${name}.test`),
            email: `${name}@example.com`,
            password: null,
            ...(invite ? { invite } : {}),
            key: { curve: 'k256', secret: new Uint8Array(createHash('sha256').update(name).digest()) },
          })
        try {
          await body(store, add)
        } finally {
          await store.close()
        }
      })

    withStore('accounts are searched by a part of their address', async (store, add) => {
      const names = ['ann', 'anna', 'hannah', 'bob', 'x_y', 'x%y', 'xzy']
      const accounts: Account[] = []
      for (const name of names) {
        const account = await add(`n${accounts.length}`)
        await store.accounts.update(account.id, { email: `${name}@example.com` }, [])
        accounts.push(account)
      }
      const search = async (text: string, after = 0, limit = 10) => {
        const found = await store.accounts.searchByEmail(text, after, limit)
        return found.map(({ email }) => email?.split('@')[0])
      }
      assert.deepEqual(await search('ANN'), ['ann', 'anna', 'hannah'])
      assert.deepEqual(await search('ann', accounts[0]!.id, 1), ['anna'])
      assert.deepEqual(await search('x_y'), ['x_y'])
      assert.deepEqual(await search('x%'), ['x%y'])
      assert.deepEqual(await search('\\'), [])
      assert.deepEqual(await search(''), names)
    })

    withStore('accounts that their owners wish gone are found when it is time', async (store, add) => {
      const [paused, active, later] = [await add('paused'), await add('active'), await add('later')]
      await store.accounts.update(paused.id, { deactivatedAt: 1, deleteAfter: 500 }, [])
      await store.accounts.update(active.id, { deleteAfter: 500 }, [])
      await store.accounts.update(later.id, { deactivatedAt: 1, deleteAfter: 600 }, [])
      const due = async (now: number) => (await store.accounts.dueForDeletion(now, 10)).map(({ id }) => id)
      assert.deepEqual(await due(499), [])
      assert.deepEqual(await due(500), [paused.id])
      assert.deepEqual(await due(600), [paused.id, later.id])
      assert.equal((await store.accounts.dueForDeletion(600, 1)).length, 1)
    })

    withStore('a password that was changed meanwhile is not hashed anew', async (store, add) => {
      const { id } = await add('alice')
      await store.accounts.update(id, { password: 'old hash' }, [])
      await store.accounts.rehash(id, 'old hash', 'new hash')
      assert.equal(await store.accounts.password(id), 'new hash')
      await store.accounts.rehash(id, 'old hash', 'another')
      assert.equal(await store.accounts.password(id), 'new hash')
    })

    withStore('keys that nobody came for are let go', async store => {
      const key = { curve: 'k256' as const, secret: new Uint8Array(32).fill(1) }
      await store.tickets.reserveKey('did:key:old', null, key, 1)
      await store.tickets.reserveKey('did:key:new', didOf('x'), key, 2)
      assert.equal(await store.tickets.removeReservedKeysBefore(2), 1)
      assert.equal(await store.tickets.reservedKey('did:key:old'), null)
      assert.deepEqual(await store.tickets.reservedKey(didOf('x')), key)
    })

    withStore('a successor that was ended is not handed out once more', async (store, add) => {
      const { id: account } = await add('alice')
      const session = (id: string) => ({ id, account, createdAt: 1, expiresAt: 1_000, next: null, appPassword: null })
      await store.sessions.add(session('a'))
      assert.equal(await store.sessions.rotate('a', session('b'), 500), 'b')
      assert.equal(await store.sessions.rotate('a', session('c'), 500), 'b')
      await store.sessions.remove('b')
      assert.equal(await store.sessions.rotate('a', session('d'), 500), null)
      assert.equal(await store.sessions.byId('d'), null)
    })

    withStore('invites are listed by time and by use, and know whom they brought', async (store, add) => {
      const codes = [
        ['a', 1],
        ['b', 2],
        ['c', 2],
        ['d', 3],
      ] as const
      await store.tickets.addInvites(
        codes.map(([code, createdAt]) => ({ code, createdAt, uses: 9, forAccount: 'admin', createdBy: 'admin' })),
      )
      await add('alice', 'b')
      await add('bob', 'b')
      await add('carol', 'a')
      const pages = async (sort: 'recent' | 'usage', primary: (code: InviteCode) => number) => {
        const found: string[] = []
        for (let last: InviteCode | undefined; ; ) {
          const after = last ? { after: { primary: primary(last), code: last.code } } : {}
          const page = await store.tickets.listInvites({ sort, limit: 3, ...after })
          if (page.length === 0) return found
          found.push(...page.map(({ code }) => code))
          last = page.at(-1)
        }
      }
      assert.deepEqual(await pages('recent', ({ createdAt }) => createdAt), ['d', 'c', 'b', 'a'])
      assert.deepEqual(await pages('usage', ({ usedBy }) => usedBy.length), ['b', 'a', 'd', 'c'])
      assert.equal((await store.tickets.invitedBy(didOf('alice')))?.code, 'b')
      assert.equal(await store.tickets.invitedBy(didOf('dave')), null)
    })

    withStore('an account is withdrawn as if it had never been', async (store, add) => {
      const row = { code: 'x', uses: 1, forAccount: 'admin', createdBy: 'admin', createdAt: 1 }
      await store.tickets.addInvites([row])
      const alice = await add('alice', 'x')
      const bob = await add('bob')
      await assert.rejects(add('carol', 'x'))
      await store.accounts.withdraw(alice.id)
      assert.deepEqual([await store.accounts.byId(alice.id), await store.accounts.count()], [null, 1])
      assert.equal(await store.repos.state(alice.did), null)
      assert.deepEqual((await store.tickets.invite('x'))!.usedBy, [])
      const carol = await add('carol', 'x')
      await store.accounts.remove(carol.id, [])
      assert.equal((await store.tickets.invite('x'))!.usedBy.length, 1, 'one who leaves has used theirs')
      await store.accounts.withdraw(alice.id)
      assert.ok(await store.accounts.byId(bob.id))
    })

    withStore('of those who make invites for one account at once, no more are made than earned', async (store, add) => {
      const { did } = await add('alice')
      const make = (names: string[], total: number, disabled = false) =>
        store.tickets.addOwnInvites(
          names.map(code => ({ code, uses: 1, forAccount: did, createdBy: did, createdAt: 1, disabled })),
          total,
        )
      await store.tickets.addInvites([{ code: 'gift', uses: 1, forAccount: did, createdBy: 'admin', createdAt: 1 }])
      const made = await Promise.all([make(['a', 'b'], 2), make(['c', 'd'], 2), make(['e', 'f'], 2)])
      assert.equal(made.filter(Boolean).length, 1)
      assert.equal((await store.tickets.invitesFor(did)).length, 3)
      assert.equal(await make(['g'], 3, true), true)
      assert.equal((await store.tickets.invite('g'))!.disabled, true)
      assert.equal(await make([], 0), true)
    })

    withStore('a code is taken once', async (store, add) => {
      const [alice, bob] = [await add('alice'), await add('bob')]
      await store.tickets.putEmailToken(alice.id, 'p', { token: 'A', requestedAt: 1 })
      await store.tickets.putEmailToken(alice.id, 'q', { token: 'A', requestedAt: 1 })
      await store.tickets.putEmailToken(bob.id, 'p', { token: 'B', requestedAt: 1 })
      assert.equal(await store.tickets.takeEmailToken(alice.id, 'p', 'B'), false)
      const taken = await Promise.all([1, 2, 3].map(() => store.tickets.takeEmailToken(alice.id, 'p', 'A')))
      assert.equal(taken.filter(Boolean).length, 1)
      assert.ok(await store.tickets.emailToken(alice.id, 'q'))
      await store.tickets.removeEmailTokens(alice.id)
      assert.equal(await store.tickets.emailToken(alice.id, 'q'), null)
      assert.ok(await store.tickets.emailToken(bob.id, 'p'))
    })

    withStore(
      'records that are taken down are known by path, and the account says whether it has any',
      async (store, add) => {
        const [alice, bob] = [await add('alice'), await add('bob')]
        const has = async ({ id }: Account) => (await store.accounts.byId(id))!.hasRecordTakedowns
        assert.equal(await has(alice), false)
        await store.takedowns.set(alice.id, 'a.b.c/1', 'case 1')
        await store.takedowns.set(alice.id, 'a.b.c/1', 'case 2')
        await store.takedowns.set(alice.id, 'a.b.c/2', 'case 3')
        assert.deepEqual([await has(alice), await has(bob)], [true, false])
        assert.equal(await store.takedowns.get(alice.id, 'a.b.c/1'), 'case 2')
        assert.equal(await store.takedowns.get(bob.id, 'a.b.c/1'), null)
        assert.deepEqual(await store.takedowns.paths(alice.id), new Set(['a.b.c/1', 'a.b.c/2']))
        for (const path of ['a.b.c/1', 'a.b.c/2', 'a.b.c/3']) await store.takedowns.set(alice.id, path, null)
        assert.equal(await has(alice), false)
        await store.takedowns.set(bob.id, 'a.b.c/1', 'case')
        await store.accounts.remove(bob.id, [])
        assert.deepEqual(await store.takedowns.paths(bob.id), new Set())
      },
    )
  })
}
