// A real OpenID provider for tests, on loopback. Whoever is named by `login_hint` is logged in without being asked.
//
//   node provider.mjs <file URL of the library> <settings.json>
//
// Settings: ready (file to write {"port": …} to), port (0: any), keys (private JWKs; the first signs), audiences,
// scope, logoutUri. `POST /keys` with {"keys": […]} changes the keys while everybody stays logged in. It ends when its
// standard input does, so that it cannot outlive the tests.

import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';

const [library, file] = process.argv.slice(2);
const { default: Provider } = await import(library);
const settings = JSON.parse(readFileSync(file, 'utf8'));
let issuer;
let provider; // a new one for new keys: what it has issued lives in the library's in-memory adapter, which they share

function make(keys) {
  const made = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: ['for tests only'] },
    clients: [
      {
        client_id: 'shop',
        token_endpoint_auth_method: 'none',
        grant_types: ['authorization_code'],
        response_types: ['code'],
        redirect_uris: ['https://shop.example/callback'],
        backchannel_logout_uri: settings.logoutUri,
        backchannel_logout_session_required: true,
      },
      {
        client_id: 'machine',
        client_secret: 'a machine\'s secret, for tests only',
        token_endpoint_auth_method: 'client_secret_basic',
        grant_types: ['client_credentials'],
        response_types: [],
        redirect_uris: [],
      },
    ],
    pkce: { required: () => true },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    extraTokenClaims: (_, token) => (token.accountId === 'olga' ? { roles: ['privacy office'], amr: ['pwd', 'mfa'] } : {}),
    interactions: { url: (_, interaction) => `/login/${interaction.uid}` },
    renderError: (context, out) => { context.body = out; },
    ttl: { AccessToken: 600, ClientCredentials: 600, IdToken: 600, Interaction: 600, Session: 600, Grant: 600 },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      backchannelLogout: { enabled: true },
      rpInitiatedLogout: { enabled: true, logoutSource: (context, form) => { context.body = form; } },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, audience) => {
          if (!settings.audiences.includes(audience)) throw new Error('no such audience');
          return { audience, scope: settings.scope, accessTokenFormat: 'jwt', accessTokenTTL: 600 };
        },
      },
    },
  });
  made.on('server_error', (_, error) => console.error(error)); // the answer does not tell
  return made;
}

async function logIn(request, response) {
  const { prompt, params, session, grantId } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    return provider.interactionFinished(request, response, { login: { accountId: params.login_hint } });
  }
  const grant = grantId
    ? await provider.Grant.find(grantId)
    : new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope((prompt.details.missingOIDCScope ?? []).join(' '));
  for (const [audience, scopes] of Object.entries(prompt.details.missingResourceScopes ?? {})) {
    grant.addResourceScope(audience, scopes.join(' '));
  }
  const result = { consent: { grantId: await grant.save() } };
  return provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
}

async function changeKeys(request, response) {
  const parts = [];
  for await (const part of request) parts.push(part);
  provider = make(JSON.parse(Buffer.concat(parts).toString()).keys);
  response.writeHead(204).end();
}

const server = createServer((request, response) => {
  const own = request.url.startsWith('/login/') ? logIn : request.url === '/keys' ? changeKeys : null;
  if (own === null) {
    provider.callback()(request, response);
  } else {
    own(request, response).catch((error) => response.writeHead(500).end(String(error)));
  }
});

server.listen(settings.port, '127.0.0.1', () => {
  const { port } = server.address();
  issuer = `http://127.0.0.1:${port}`;
  provider = make(settings.keys);
  writeFileSync(`${settings.ready}.draft`, JSON.stringify({ port }));
  renameSync(`${settings.ready}.draft`, settings.ready);
});
process.stdin.on('end', () => process.exit()).resume();
