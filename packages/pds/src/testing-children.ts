/** PDSs in processes of their own, for tests that kill them. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

export interface Child {
  process: ChildProcess
  url: string
  users: { did: string; token: string }[]
}

/** Starts one over a folder, with these users; see `testing-child.ts`. */
export async function startChild(folder: string, names: readonly string[]): Promise<Child> {
  const script = fileURLToPath(new URL('testing-child.ts', import.meta.url))
  const child = fork(script, [folder, ...names])
  const told = await new Promise<Omit<Child, 'process'>>((resolve, reject) => {
    child.once('message', message => resolve(message as Omit<Child, 'process'>))
    child.once('exit', code => reject(new Error(`the PDS ended with ${code}`)))
  })
  return { process: child, ...told }
}

/** Activates an account. Gives the error, or null. */
export async function activateIn({ process }: Child, did: string): Promise<string | null> {
  process.send(did)
  const [why] = await once(process, 'message')
  return why
}

/** Ends it at once, if it has not ended. */
export async function killChild({ process }: Child): Promise<void> {
  if (process.exitCode !== null || process.signalCode !== null) return
  const gone = new Promise(resolve => process.once('exit', resolve))
  process.kill('SIGKILL')
  await gone
}
