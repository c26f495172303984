// All hostile hosts, in a thread of their own, so that what they do keeps nobody busy but the Relay.
import { parentPort, workerData } from 'node:worker_threads'
import type { Did } from '@millisky/core/syntax'
import { HOSTILITIES } from './attacks.ts'
import { type FakeAccount, FakePds } from './fake-pds.ts'
import { type Attack, HostileHost, slowDirectories } from './hostile-host.ts'

const { plc, victims } = workerData as { plc: string; victims: Did[] }
const registrar = await FakePds.start()
const slow = await slowDirectories(45)
const hosts: [name: string, hostname: string][] = []
for (const [i, { name, accounts = 0, attack }] of HOSTILITIES.entries()) {
  const own: FakeAccount[] = []
  let act: Attack = () => {}
  const host = await HostileHost.start((line, nth) => act(line, nth))
  for (let n = 0; n < accounts; n++) own.push(await registrar.createAccount(plc, `h${i}n${n}`, host.url))
  act = attack({ own, victims, slow })
  hosts.push([name, host.hostname])
}
parentPort!.postMessage(hosts)
