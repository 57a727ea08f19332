// Where the cache lies, by the environment.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { defaultCacheFolder } from './cache-folder.ts';

test('the cache is where PRATIQUE_CACHE says, then where XDG says', () => {
  assert.equal(defaultCacheFolder({ PRATIQUE_CACHE: '/a', XDG_CACHE_HOME: '/b' }), '/a');
  assert.equal(defaultCacheFolder({ XDG_CACHE_HOME: '/b' }), '/b/pratique');
  assert.match(defaultCacheFolder({}), /\/pratique$/);
});
