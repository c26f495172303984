// Ports for daemons of tests and benchmarks that have to know theirs before they listen, or listen there again.
import { randomInt } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:net'

/** Below what systems give to connections and to servers that ask for any port, so that nobody is given one of these by chance. */
const LOWEST = 20_000
const ABOVE = 32_000

/**
 * A port on loopback that nobody uses, and that no other process gets from here as long as this one lives: until its daemon
 * listens, while that is killed and started again, and after.
 *
 * @param draw - Names a port to try.
 */
export async function freePort(draw = () => randomInt(LOWEST, ABOVE)): Promise<number> {
  for (let tries = 0; tries < 1_000; tries++) {
    const port = draw()
    // The mark of the port is the UDP port of the same number, which the daemon has no use for. It goes with this process.
    const mark = createSocket('udp4').unref()
    const taken = await new Promise<boolean>(done => {
      mark.once('error', () => done(true)).bind({ port, address: '127.0.0.1', exclusive: true }, () => done(false))
    })
    if (!taken && (await isFree(port))) return port
    mark.close()
  }
  throw new Error('no free port was found')
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer()
  try {
    server.listen(port)
    await once(server, 'listening')
    return true
  } catch {
    return false
  } finally {
    if (server.listening) await new Promise(done => server.close(done))
  }
}
