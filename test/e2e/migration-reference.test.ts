// Accounts move between this project's PDS and the reference's, in both directions.
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import type { Mailbox } from '../../packages/pds/src/testing-mail.ts'
import { verifyingConsumer } from './consumers.ts'
import {
  arrive,
  carry,
  fill,
  move,
  newPlace,
  ourDaemon,
  type Place,
  PREFERENCES,
  recordsOf,
  type Surroundings,
  settingsOf,
  signUp,
  startSurroundings,
} from './migration.ts'
import { ReferenceDaemon, withoutReference } from './reference-daemon.ts'

describe('between this PDS and the reference', { skip: withoutReference }, () => {
  let around: Surroundings
  let mailbox: Mailbox
  let ours: Place
  let theirs: Place

  before(async () => {
    around = await startSurroundings()
    mailbox = around.mailbox
    const { folder, network, after } = around
    ours = await newPlace('ours')
    theirs = await newPlace('theirs')
    const { url: plcUrl } = network.plc
    const daemon = ourDaemon(ours, plcUrl, mailbox, join(folder, 'ours'))
    const env = settingsOf(theirs, plcUrl, mailbox)
    const reference = new ReferenceDaemon({ folder: join(folder, 'theirs'), port: theirs.port, plcUrl, env })
    after(async () => {
      await daemon.stop()
      await reference.stop()
    })
    await Promise.all([daemon.start(), reference.start()])
  })
  after(() => around?.end())

  const directions: [string, () => [Place, Place]][] = [
    ['from the reference', () => [theirs, ours]],
    ['to the reference', () => [ours, theirs]],
  ]
  for (const [i, [name, direction]] of directions.entries()) {
    test(`${name}: all that an account has comes along`, async () => {
      const [from, to] = direction()
      const consumer = verifyingConsumer(to.url, around.network.plc.url)
      try {
        const mover = await signUp(from, `mover${i}`)
        await fill(mover)
        const did = mover.agent.assertDid
        const records = await recordsOf(mover.agent)
        const here = await move(mover, to, mailbox)
        assert.deepEqual(await recordsOf(here), records)
        assert.deepEqual((await here.app.bsky.actor.getPreferences()).data.preferences, PREFERENCES)
        await here.post({ text: 'from the new home' })
        const seen = () => consumer.events.filter(event => event.did === did).map(({ event }) => event)
        await until('the post', () => seen().at(-1) === 'create')
        const told = seen().filter((kind, n, all) => kind !== all[n - 1])
        assert.deepEqual(told, ['identity', 'account', 'identity', 'sync', 'create'])
        assert.deepEqual(consumer.errors, [], 'signed with the key that the DID names')
      } finally {
        await consumer.close()
      }
    })

    test(`${name}: half way is no harm, and the way can be gone again`, async () => {
      const [from, to] = direction()
      const mover = await signUp(from, `waverer${i}`)
      await fill(mover)
      const here = await arrive(mover, to)
      assert.equal(await carry(mover, here), 2)
      await mover.agent.post({ text: 'written before the move was done' })
      assert.equal(await carry(mover, here), 0)
      const [there, copy] = await Promise.all(
        [mover.agent, here].map(async agent => (await agent.com.atproto.server.checkAccountStatus()).data),
      )
      assert.equal(copy?.indexedRecords, there?.indexedRecords)
      assert.deepEqual([there?.activated, copy?.activated], [true, false])
    })
  }
})
