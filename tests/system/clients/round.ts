// A round with the client that openapi-typescript and openapi-fetch make: typed as strictly as TypeScript can.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

const [baseUrl = "", ready = ""] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl });

const names = ["one", "two"];
const ids: number[] = [];
for (const fname of names) {
  const created = await client.POST("/users", {
    body: { fname, lname: "Script", email: `${fname}@typescript.example.com`, password: "correct horse" },
  });
  assert.ok(created.data);
  assert.equal(created.response.headers.get("Location"), `/users/${created.data.id}`);
  ids.push(created.data.id);
}
const [first = 0, second = 0] = ids;
assert.ok(first >= 2 ** 31);

const page = await client.GET("/users", { params: { query: { limit: 1, after: first - 1 } } });
assert.deepEqual(page.data?.map((user) => user.id), [first]);
assert.match(page.response.headers.get("Link") ?? "", /rel="next"/);
const next = await client.GET("/users", { params: { query: { limit: 1, after: first } } });
assert.deepEqual(next.data?.map((user) => user.id), [second]);

const path = { user_id: first };
const changed = await client.PATCH("/users/{user_id}", { params: { path }, body: { fname: "three" } });
assert.equal(changed.data?.fname, "three");
const refused = await client.PATCH("/users/{user_id}", { params: { path }, body: { fname: "" } });
assert.equal(refused.error?.code, "invalid-request");
assert.deepEqual(refused.error?.errors?.[0]?.loc, ["body", "fname"]);

assert.equal((await client.DELETE("/users/{user_id}", { params: { path } })).response.status, 204);
assert.equal((await client.GET("/users/{user_id}", { params: { path } })).error?.code, "user-not-found");

const unready = await createClient<paths>({ baseUrl: ready }).GET("/readyz");
assert.equal(unready.error?.failed, "database");
