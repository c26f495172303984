// `millisky pds import` killed again and again: what has come is whole, and run once more to its end it has all.
import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { Blocks } from '@millisky/core/blocks'
import { readCar } from '@millisky/core/car'
import { SigningKey } from '@millisky/core/crypto'
import { verifyRepo } from '@millisky/core/repo'
import { testDatabases } from '@millisky/server/db/testing'
import { until } from '@millisky/server/testing-until'
import type { AdoptionReport } from '../../packages/pds/src/adoption/adoption.ts'
import { type FixturePerson, fixturePerson, writeReference } from '../../packages/pds/src/adoption/testing-fixtures.ts'
import { startTestPds, type TestPds } from '../../packages/pds/src/testing-pds.ts'
import { run } from './command-line.ts'
import { randomOf } from './kills.ts'
import { Process } from './network.ts'

const seed = Number(process.env.MILLISKY_TEST_SEED ?? 20_260_820)
const PEOPLE = ['alice', ...Array.from({ length: 11 }, (_, i) => `person${i}`)]

/** What a reader gets is what the old server signed. */
async function holds(pds: TestPds, { did, head, secret, curve, records }: FixturePerson): Promise<void> {
  const { bytes } = await pds.get('com.atproto.sync.getRepo', { did })
  const { roots, blocks } = readCar(bytes)
  const key = SigningKey.fromPrivate(curve, secret).publicKey
  const repo = verifyRepo({ root: roots[0]!, blocks: new Blocks(blocks) }, { did, key })
  assert.equal(repo.head.commit.toString(), head.commit.toString())
  const found = [...repo.records].map(({ path, cid }) => `${path} ${cid}`)
  assert.deepEqual(found, records.map(({ path, cid }) => `${path} ${cid}`).sort())
}

for (const database of testDatabases()) {
  describe(`an import into ${database.name}`, { skip: database.skip }, () => {
    test('that is killed is simply run again', { timeout: 300_000 }, async t => {
      t.diagnostic(`seed ${seed}`)
      const random = randomOf(seed)
      const folder = await mkdtemp(join(tmpdir(), 'millisky-import-'))
      t.after(() => rm(folder, { recursive: true, force: true }))
      const people = PEOPLE.map(name => fixturePerson(name, { count: 20 }))
      await writeReference(join(folder, 'old'), people)
      const target = join(folder, 'new')
      const env = { PDS_DATA_DIRECTORY: target, PDS_DATABASE_URL: await database.url(t) }
      const args = ['pds', 'import', join(folder, 'old'), '--json']
      const progress: number[] = []
      for (const done of [0, 5]) {
        const killed = new Process(args, env)
        const far = () => Number([...killed.output.matchAll(/^(\d+)\/12 /gm)].at(-1)?.[1] ?? 0)
        await until('it has come so far', () => far() >= done || killed.ended)
        await wait(random() * (done === 0 ? 600 : 60))
        await killed.end('SIGKILL')
        progress.push(far())
      }
      const { code, output, out } = await run(args, env)
      assert.equal(code, 0, output)
      const report = JSON.parse(out) as AdoptionReport
      assert.deepEqual(report.differences, [])
      const { found, brought, present, failed } = report.accounts
      assert.deepEqual([found, brought + present, failed], [12, 12, 0])
      assert.deepEqual([report.equal.heads, report.equal.blobs], [12, 12])
      t.diagnostic(`killed at ${progress.join(' and ')} of 12 accounts, ${present} were there`)

      const pds = await startTestPds(t, { ...env, PDS_BLOBSTORE_DISK_LOCATION: join(target, 'blobs') })
      for (const person of people) await holds(pds, person)
      assert.ok(pds.store.log.head >= 41, 'events go on above those of the old server')
      assert.equal((await readdir(join(target, 'blobs'))).filter(name => name.startsWith('did:')).length, 12)
    })
  })
}
