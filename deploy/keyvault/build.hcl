# What a build needs: registry credentials, code-signing keys. For roles of a CI, with `token_ttl=15m` and a
# secret-id that is good once (`secret_id_num_uses=1`).
path "secret/data/wavry/{{identity.entity.metadata.environment}}/build/*" {
  capabilities = ["read"]
}
