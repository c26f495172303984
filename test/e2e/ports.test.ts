// Ports stay with whoever was given them, also when several processes ask at a time and nobody listens yet.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { createServer } from 'node:net'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { freePort } from './ports.ts'

test('no port is given twice, to this process or to another', async () => {
  const own = await Promise.all(Array.from({ length: 200 }, () => freePort()))
  assert.equal(new Set(own).size, own.length)
  const program = `
    import { freePort } from ${JSON.stringify(new URL('ports.ts', import.meta.url).href)}
    console.log(JSON.stringify(await Promise.all(Array.from({ length: 200 }, () => freePort()))))
  `
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program])
  const others = JSON.parse(stdout) as number[]
  assert.equal(others.length, 200)
  assert.deepEqual(
    others.filter(port => own.includes(port)),
    [],
  )
})

test('a port that somebody listens at is passed over', async t => {
  const server = createServer().listen(0, '127.0.0.1')
  await new Promise(done => server.once('listening', done))
  t.after(() => new Promise(done => server.close(done)))
  const taken = (server.address() as { port: number }).port
  const free = await freePort()
  const drawn = [taken, free, taken, free, taken]
  assert.notEqual(await freePort(() => drawn.pop() ?? randomInt(20_000, 32_000)), taken)
  assert.deepEqual(drawn, [], 'and one that was given before')
})
