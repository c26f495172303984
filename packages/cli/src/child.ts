/** A daemon as a child process of `millisky dev`. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const LINES_KEPT = 20
/** Levels of log lines that are shown without being asked for. */
const LOUD = new Set(['warn', 'error', 'fatal'])

/** A JSON log line as people read it; other lines as they are, and shown. */
function readable(line: string): { text: string; isLoud: boolean } {
  try {
    const { level, msg, err, time: _time, name: _name, ...rest } = JSON.parse(line) as Record<string, unknown>
    const cause = (err as { message?: string } | undefined)?.message
    const details = Object.keys(rest).length > 0 ? ` ${JSON.stringify(rest)}` : ''
    return { text: `${msg ?? ''}${cause ? `: ${cause}` : ''}${details}`, isLoud: LOUD.has(String(level)) }
  } catch {
    return { text: line, isLoud: true }
  }
}

/** Starts `millisky <name>`, keeps its log in a file, shows its warnings, and ends it. */
export class Child {
  readonly name: string
  /** Resolves with how the process ended. */
  readonly exit: Promise<string>
  #process: ChildProcess
  #ended = false
  #lines: string[] = []

  constructor(name: string, env: Record<string, string>, logDir: string, verbose: boolean) {
    this.name = name
    const entry = new URL('./entry.mjs', import.meta.url).pathname
    // The IPC channel has no messages: its end tells the child that its parent is gone, also after kill -9.
    this.#process = spawn(process.execPath, [entry, name], {
      env: { ...inherited(), ...env },
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      // A process group of its own: Ctrl-C goes to the whole group of the terminal, and a daemon that gets a second
      // signal while it stops leaves at once.
      detached: true,
    })
    const file = createWriteStream(join(logDir, `${name}.log`), { flags: 'a', mode: 0o600 })
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      if (!stream) continue
      createInterface({ input: stream }).on('line', line => {
        file.write(`${line}\n`)
        const { text, isLoud } = readable(line)
        this.#lines.push(text)
        if (this.#lines.length > LINES_KEPT) this.#lines.shift()
        if (verbose || isLoud) process.stderr.write(`[${name}] ${text}\n`)
      })
    }
    this.exit = new Promise(done => {
      this.#process.once('error', err => done(err.message))
      this.#process.once('exit', (code, signal) => done(signal ? `signal ${signal}` : `exit code ${code}`))
    }).then(how => {
      this.#ended = true
      file.end()
      return String(how)
    })
  }

  get ended(): boolean {
    return this.#ended
  }

  get pid(): number | undefined {
    return this.#process.pid
  }

  /** The newest lines of its log, for an error message. */
  lastLines(): string {
    return this.#lines.map(line => `  ${line}`).join('\n')
  }

  /** SIGTERM, then SIGKILL after the deadline. */
  async stop(timeoutMs: number): Promise<void> {
    if (this.#ended) return
    this.#process.kill('SIGTERM')
    const timer = setTimeout(() => {
      process.stderr.write(`millisky: ${this.name} did not stop and had to be killed\n`)
      this.#process.kill('SIGKILL')
    }, timeoutMs)
    await this.exit
    clearTimeout(timer)
  }
}

/** What a child may keep of our environment: nothing that configures a daemon, so that `dev` is the same everywhere. */
function inherited(): Record<string, string> {
  const kept: Record<string, string> = {}
  for (const name of ['PATH', 'HOME', 'TMPDIR', 'LANG', 'TZ', 'NODE_OPTIONS', 'NODE_EXTRA_CA_CERTS', 'LOG_LEVEL']) {
    const value = process.env[name]
    if (value !== undefined) kept[name] = value
  }
  return kept
}
