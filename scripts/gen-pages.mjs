// Pages for operators that are made from code: docs/config.md and docs/endpoints.md.
export async function pages() {
  return new Map()
}
