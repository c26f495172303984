import assert from 'node:assert/strict'
import { test } from 'node:test'
import { commitEvent } from '@millisky/core/event'
import { create, frameOf, HOST, NOW, TestRepo, TIME } from '@millisky/core/testing-repos'
import { UNKNOWN_ACCOUNT } from '@millisky/core/verify'
import { type Job, judgeGroup, Keys, type Outcome } from './verifiers/job.ts'
import { packedSize, packGroups, packOutcomes, Texts, unpackGroups, unpackOutcomes } from './verifiers/packing.ts'
import { type Request, Verifiers } from './verifiers.ts'

const identityOf = (repo: TestRepo, more = {}) => ({
  pds: `https://${HOST}`,
  key: repo.key.publicKey.didKey,
  fresh: false,
  ...more,
})

function jobs(repo: TestRepo, count: number): Job[] {
  return Array.from({ length: count }, (_, i) => {
    const change = repo.write(create(`app.bsky.feed.post/${repo.nextRev()}`, `post ${i}`))
    return {
      frame: frameOf(commitEvent(change, TIME), i + 1),
      host: HOST,
      policy: 'strict' as const,
      identity: identityOf(repo),
    }
  })
}

const kinds = (outcomes: Outcome[]) =>
  outcomes.map(outcome => ('reason' in outcome ? `${outcome.kind} ${outcome.reason}` : outcome.kind))

function ask(verifiers: Verifiers, request: Omit<Request, 'done' | 'prior'> & Partial<Request>): Promise<Outcome[]> {
  return new Promise(done => verifiers.submit({ prior: UNKNOWN_ACCOUNT, ...request, done }))
}

for (const workers of [0, 2]) {
  const open = (t: { after(fn: () => Promise<void>): void }) => {
    const verifiers = new Verifiers({ workers, now: () => NOW })
    t.after(() => verifiers.close())
    return verifiers
  }

  test(`a group is judged in order, each with the state of the one before; ${workers} workers`, async t => {
    const verifiers = open(t)
    const repos = Array.from({ length: 20 }, (_, n) => new TestRepo(n, { curve: n & 1 ? 'k256' : 'p256' }))
    const answers = await Promise.all(
      repos.map((repo, n) => ask(verifiers, { account: repo.did, from: n % 3, jobs: jobs(repo, 5) })),
    )
    for (const [n, outcomes] of answers.entries()) {
      assert.deepEqual(kinds(outcomes), Array(5).fill('admit'))
      const last = outcomes.at(-1)!
      const { head } = repos[n]!
      assert.ok(last.kind === 'admit' && last.next.rev === head!.rev && last.next.host === HOST)
      assert.deepEqual([last.next.data, last.next.commit], [head!.data.key, head!.commit.key])
    }
    assert.equal(verifiers.pending, 0)
  })

  test(`a group ends at what needs an identity or is no frame; ${workers} workers`, async t => {
    const verifiers = open(t)
    const repo = new TestRepo('alone')
    const [first, second, third] = jobs(repo, 3) as [Job, Job, Job]
    const other = { ...second, identity: identityOf(new TestRepo('other')) }
    const outcomes = async (...jobs: Job[]) => kinds(await ask(verifiers, { account: repo.did, from: 1, jobs }))
    assert.deepEqual(await outcomes(first, other, third), ['admit', 'retry-identity bad-signature'])
    assert.deepEqual(await outcomes(first, { ...other, identity: { ...other.identity, fresh: true } }), [
      'admit',
      'drop bad-signature',
    ])
    assert.deepEqual(await outcomes({ ...first, frame: new Uint8Array([1, 2]) }, second), ['undecodable'])
    assert.deepEqual(await outcomes({ ...first, identity: null }, second), ['retry-identity unresolved'])
    assert.deepEqual(await outcomes({ ...first, identity: identityOf(repo, { key: 'did:key:zNope', fresh: true }) }), [
      'drop no-key',
    ])
  })
}

test('hosts take turns', async t => {
  const verifiers = new Verifiers({ workers: 0, now: () => NOW })
  t.after(() => verifiers.close())
  const order: number[] = []
  const all: Promise<void>[] = []
  const submit = (from: number, name: string) => {
    const repo = new TestRepo(name)
    all.push(ask(verifiers, { account: repo.did, from, jobs: jobs(repo, 1) }).then(() => void order.push(from)))
  }
  for (let i = 0; i < 300; i++) submit(1, `flood ${i}`)
  submit(2, 'quiet')
  await Promise.all(all)
  assert.ok(order.indexOf(2) < 70, `came as number ${order.indexOf(2)}`)
})

test('jobs and outcomes come through packing unchanged', () => {
  const repo = new TestRepo('packed')
  const prior = { ...repo.stateAt(null), status: 'verschlafen ☕', active: false, local: 'takendown' }
  const groups = [
    { prior: null, jobs: jobs(repo, 2) },
    { prior, jobs: [{ ...jobs(repo, 1)[0]!, policy: 'observe' as const, identity: null }] },
    {
      prior: repo.stateAt(repo.head),
      jobs: [{ ...jobs(repo, 1)[0]!, identity: { pds: null, key: null, fresh: true } }],
    },
  ]
  const texts = new Texts()
  const buffer = Buffer.alloc(groups.reduce((sum, group) => sum + packedSize(group), 0))
  const used = packGroups(groups, texts, buffer)
  assert.deepEqual(plain(unpackGroups(buffer.subarray(0, used), groups.length, texts.list)), plain(groups))
  const outcomes: Outcome[][] = [
    judgeGroup(groups[0]!, NOW, new Keys()),
    [
      { kind: 'drop', reason: 'bad-op', detail: 'näher' },
      { kind: 'drop', reason: 'rev-stale' },
      { kind: 'admit', notes: ['since-break', 'prev-data-break'], next: prior },
    ],
    [{ kind: 'undecodable', detail: '' }],
    [{ kind: 'failed', detail: 'x' }],
    [],
  ]
  const words = new Texts()
  const packed = packOutcomes(outcomes, words)
  assert.deepEqual(plain(unpackOutcomes(packed, outcomes.length, words.list)), plain(outcomes))
})

/** Views and buffers alike as hex. */
function plain(value: unknown): unknown {
  return JSON.parse(
    JSON.stringify(value, (_, inner) => (inner instanceof Uint8Array ? Buffer.from(inner).toString('hex') : inner)),
  )
}

test('a thread that dies is replaced, and only what killed it is lost', async t => {
  const crashes: unknown[] = []
  const verifiers = new Verifiers({ workers: 1, now: () => NOW, onCrash: error => crashes.push(error) })
  t.after(() => verifiers.close())
  const repo = new TestRepo('victim')
  const good = jobs(repo, 1)
  // No foreign bytes can do this: a rev of a length that no TID has garbles the batch.
  const prior = { ...UNKNOWN_ACCOUNT, rev: 'x'.repeat(300) as never }
  const [bad, fine] = await Promise.all([
    ask(verifiers, { account: 'did:x', from: 1, jobs: good, prior }),
    ask(verifiers, { account: repo.did, from: 2, jobs: good }),
  ])
  assert.deepEqual(kinds(fine), ['admit'])
  assert.equal(bad[0]?.kind, 'failed')
  assert.equal(crashes.length, 2)
})
