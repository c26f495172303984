// The commands that operators and owners type, as processes of their own.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { Process } from './network.ts'

export interface Ran {
  code: number | null
  out: string
  err: string
  /** Both, as a terminal shows them. */
  output: string
}

/** Runs `millisky` with these arguments to its end. */
export async function run(args: string[], env: Record<string, string> = {}): Promise<Ran> {
  const process = new Process(args, env)
  const texts = { out: '', err: '' }
  process.child.stdout!.on('data', chunk => {
    texts.out += chunk
  })
  process.child.stderr!.on('data', chunk => {
    texts.err += chunk
  })
  await once(process.child, 'close')
  return { code: process.child.exitCode, output: process.output, ...texts }
}

/** `millisky` with what the environment says; `json` gives what it says with `--json`, which is one value a line. */
export function commandLine(env: () => Record<string, string>) {
  const millisky = (...args: string[]) => run(args, env())
  const json = async <T>(...args: string[]): Promise<T[]> => {
    const { code, output } = await millisky(...args, '--json')
    assert.equal(code, 0, output)
    const lines = output.trim().split('\n')
    return lines.filter(line => line !== '').map(line => JSON.parse(line) as T)
  }
  return { millisky, json }
}
