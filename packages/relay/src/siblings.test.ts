import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Unavailable } from '@millisky/core/errors'
import { openDb } from '@millisky/server/db/db'
import type { FetchOptions } from '@millisky/server/fetch'
import { type Delivery, EXPIRY_MS, isFromRelay, Siblings } from './siblings.ts'
import { migrations, type RelaySchema } from './store/schema.ts'
import { createSqlStore } from './store/sql.ts'
import type { OutboxStore } from './store/store.ts'

const A = 'https://a.example.com'
const B = 'https://b.example.com'

/** Relays that answer as told, and a clock that a sleep moves. */
class World {
  readonly store: OutboxStore
  now = 1_000
  /** `METHOD url body` of what came. */
  readonly got: string[] = []
  readonly headers: Record<string, string>[] = []
  readonly ends: Delivery[] = []
  readonly sleeps: number[] = []
  readonly errors: unknown[] = []
  /** Status, or null for no answer. */
  answer: (url: string) => number | null = () => 200

  constructor(store: OutboxStore) {
    this.store = store
  }

  siblings(more: Partial<ConstructorParameters<typeof Siblings>[0]> = {}): Siblings {
    return new Siblings({
      relays: [A, B],
      crawlers: [],
      store: this.store,
      password: 'secret',
      now: () => this.now,
      sleep: async ms => {
        this.sleeps.push(ms)
        this.now += ms
      },
      fetch: async (url, { headers = {}, body = '' }: FetchOptions = {}) => {
        const status = this.answer(String(url))
        if (status === null) throw new Unavailable('UpstreamFailure', 'nobody is there', 502)
        this.got.push(`${url} ${body}`.trim())
        this.headers.push(headers)
        return { status, headers: new Headers(), url: String(url), bytes: new Uint8Array() }
      },
      observe: delivery => this.ends.push(delivery),
      onError: error => this.errors.push(error),
      ...more,
    })
  }

  async drained(): Promise<void> {
    while ((await this.store.count()).size > 0) await new Promise(setImmediate)
  }
}

async function start(t: { after(fn: () => Promise<void>): void }): Promise<World> {
  const store = createSqlStore(await openDb<RelaySchema>('sqlite://:memory:', { migrations }))
  t.after(() => store.close())
  return new World(store.outbox)
}

test('each sibling gets everything in order, with credentials and the sign of a relay', async t => {
  const world = await start(t)
  const siblings = world.siblings()
  await siblings.start()
  await siblings.tell('/admin/pds/block?host=x.example.com')
  await siblings.tell('/admin/subs/banDomain', { Domain: 'y.example.com' })
  await world.drained()
  for (const sibling of [A, B]) {
    assert.deepEqual(
      world.got.filter(request => request.startsWith(sibling)),
      [`${sibling}/admin/pds/block?host=x.example.com`, `${sibling}/admin/subs/banDomain {"Domain":"y.example.com"}`],
    )
  }
  assert.equal(world.headers[0]?.authorization, `Basic ${Buffer.from('admin:secret').toString('base64')}`)
  assert.ok(isFromRelay(world.headers[0] as { via?: string }))
  assert.deepEqual(world.errors, [])
  await siblings.close()
})

test('what a sibling does not answer is tried again, ever more slowly, before what came later', async t => {
  const world = await start(t)
  let attempts = 0
  world.answer = () => (++attempts <= 12 ? [null, 503, 401][attempts % 3]! : 200)
  const siblings = world.siblings({ relays: [A] })
  await siblings.start()
  await siblings.tell('/admin/one')
  await siblings.tell('/admin/two')
  await world.drained()
  const taken = world.got.slice(-2)
  assert.deepEqual(taken, [`${A}/admin/one`, `${A}/admin/two`])
  assert.ok(world.got.slice(0, -1).every(request => request === `${A}/admin/one`))
  assert.deepEqual(world.sleeps.slice(0, 4), [1_000, 2_000, 4_000, 8_000])
  assert.equal(Math.max(...world.sleeps), 600_000)
  assert.deepEqual(world.ends.slice(-2), ['delivered', 'delivered'])
  await siblings.close()
})

test('a refusal is not repeated, a failure of the sibling a few times', async t => {
  const world = await start(t)
  world.answer = url => (url.endsWith('/one') ? 404 : url.endsWith('/two') ? 500 : 200)
  const siblings = world.siblings({ relays: [A] })
  await siblings.start()
  for (const path of ['/admin/one', '/admin/two', '/admin/three']) await siblings.tell(path)
  await world.drained()
  assert.deepEqual(world.ends, ['refused', 'failed', 'failed', 'failed', 'failed', 'refused', 'delivered'])
  await siblings.close()
})

test('what was not delivered goes on after a restart, until it is too old', async t => {
  const world = await start(t)
  world.answer = () => null
  const first = world.siblings({
    relays: [A],
    sleep: (_ms, signal) => new Promise(resolve => signal.addEventListener('abort', resolve)),
  })
  await first.start()
  await first.tell('/admin/one')
  while (world.ends.length === 0) await new Promise(setImmediate)
  await first.close()
  assert.equal((await world.store.first(A))?.attempts, 1)
  world.answer = () => 200
  const second = world.siblings({ relays: [A] })
  await second.start()
  assert.equal(second.waiting.get(A), 1)
  await world.drained()
  assert.deepEqual(world.got, [`${A}/admin/one`])
  await second.close()

  world.answer = () => null
  const third = world.siblings({ relays: [A] })
  await third.start()
  const since = world.now
  await third.tell('/admin/late')
  await world.drained()
  assert.equal(world.ends.at(-1), 'expired')
  assert.ok(world.now - since >= EXPIRY_MS)
  await third.close()
})

test('a host that asks to be crawled is passed on once an hour, without credentials, to all', async t => {
  const world = await start(t)
  const siblings = world.siblings({ relays: [A], crawlers: [B, A] })
  await siblings.start()
  for (let i = 0; i < 3; i++) await siblings.tellCrawl('pds.example.com')
  await siblings.tell('/admin/one')
  await world.drained()
  assert.deepEqual(
    world.got.filter(request => request.startsWith(B)),
    [`${B}/xrpc/com.atproto.sync.requestCrawl {"hostname":"pds.example.com"}`],
  )
  assert.equal(world.got.filter(request => request.startsWith(A)).length, 2)
  assert.ok(world.headers.every((headers, i) => world.got[i]!.includes('/admin/') || !('authorization' in headers)))
  world.now += 3_600_000
  await siblings.tellCrawl('pds.example.com')
  await world.drained()
  assert.equal(world.got.length, 5)
  await siblings.close()
})

test('without siblings nothing is kept', async t => {
  const world = await start(t)
  const siblings = world.siblings({ relays: [] })
  await siblings.start()
  await siblings.tell('/admin/one')
  await siblings.tellCrawl('pds.example.com')
  assert.deepEqual(await world.store.list(0, 9), [])
  await siblings.close()
})

test('requests of relays are known by Via', () => {
  assert.equal(isFromRelay({ via: 'HTTP/1.1 atproto-relay' }), true)
  assert.equal(isFromRelay({ via: '1.1 proxy.example.com, 1.1 atproto-relay' }), true)
  assert.equal(isFromRelay({ via: '1.1 proxy.example.com' }), false)
  assert.equal(isFromRelay({}), false)
})
