import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import { test } from 'node:test'
import { Lifetime } from './lifetime.ts'
import { silentLog } from './trace.ts'

function recorded(life: Lifetime, names: string[], seen: string[]) {
  for (const name of names) {
    life.add(name, { start: () => void seen.push(`+${name}`), stop: async () => void seen.push(`-${name}`) })
  }
}

test('parts start in order and stop in reverse, once', async () => {
  const life = new Lifetime({ log: silentLog })
  const seen: string[] = []
  recorded(life, ['db', 'log', 'http'], seen)
  await life.start()
  assert.deepEqual(await Promise.all([life.stop(), life.stop()]), [[], []])
  assert.deepEqual(seen, ['+db', '+log', '+http', '-http', '-log', '-db'])
})

test('if a part does not start, those before it stop and it does not', async () => {
  const life = new Lifetime({ log: silentLog })
  const seen: string[] = []
  recorded(life, ['db'], seen)
  life.add('http', {
    start: () => Promise.reject(new Error('port taken')),
    stop: () => seen.push('-http'),
  })
  recorded(life, ['late'], seen)
  await assert.rejects(life.start(), /port taken/)
  assert.deepEqual(seen, ['+db', '-db'])
})

test('a part that fails or hangs is named and does not keep the others from stopping', async () => {
  const life = new Lifetime({ log: silentLog, drainMs: 20 })
  const seen: string[] = []
  recorded(life, ['db'], seen)
  life.add('broken', { stop: () => Promise.reject(new Error('no')) })
  life.add('hanging', { stop: () => new Promise(() => {}) })
  await life.start()
  assert.deepEqual(await life.stop(), ['hanging', 'broken'])
  assert.deepEqual(seen, ['+db', '-db'])
})

test('the first signal drains, the second leaves at once, listeners go away', async () => {
  const signals = new EventEmitter()
  const exits: number[] = []
  let finish: (() => void) | undefined
  const life = new Lifetime({ log: silentLog })
  life.add('slow', {
    stop: () =>
      new Promise<void>(resolve => {
        finish = resolve
      }),
  })
  await life.start()
  const code = life.untilSignal(signals, exit => exits.push(exit))
  signals.emit('SIGTERM', 'SIGTERM')
  await new Promise(setImmediate)
  assert.deepEqual(exits, [])
  signals.emit('SIGINT', 'SIGINT')
  assert.deepEqual(exits, [1])
  finish?.()
  assert.equal(await code, 0)
  assert.deepEqual(signals.eventNames(), [])
})

test('an error nobody caught ends the process with 1', async () => {
  const signals = new EventEmitter()
  const exits: number[] = []
  const life = new Lifetime({ log: silentLog })
  void life.untilSignal(signals, exit => exits.push(exit))
  signals.emit('uncaughtException', new Error('bug'))
  assert.deepEqual(exits, [1])
})
