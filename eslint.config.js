// SPDX-License-Identifier: BSD-3-Clause
import neostandard from 'neostandard'
import tseslint from 'typescript-eslint'

export default tseslint.config(
  { ignores: ['build/', 'data/', '.tap/', 'openapi/'] },
  neostandard({ ts: true }),
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      '@typescript-eslint/prefer-readonly': 'error',
      '@typescript-eslint/only-throw-error': 'error',
      // A number or an address in a message is meant to be there.
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      // () => f() of a void f is how a callback is written here.
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      // Fastify wants async functions of plugins and handlers that have nothing to await.
      '@typescript-eslint/require-await': 'off',
      // A schema and the type made from it share a name; what is really declared twice, the compiler refuses.
      '@typescript-eslint/no-redeclare': 'off',
      // An index that was just checked is told to the compiler by `!` nowhere but in tests.
      '@typescript-eslint/no-non-null-assertion': 'error'
    }
  },
  {
    files: ['test/**/*.ts'],
    rules: {
      // tap's t.test returns a promise that tap itself waits for.
      '@typescript-eslint/no-floating-promises': 'off',
      '@typescript-eslint/no-non-null-assertion': 'off',
      // What came over the wire is compared, not trusted: JSON.parse gives any.
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/no-unsafe-call': 'off',
      '@typescript-eslint/no-unsafe-return': 'off'
    }
  },
  {
    rules: {
      complexity: ['error', 25],
      'no-console': 'off'
    }
  }
)
