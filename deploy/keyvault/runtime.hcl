# What a unit needs while it runs, in its own environment: token signing keys, database credentials, API keys,
# TLS keys. It reads, and does nothing else.
path "secret/data/wavry/{{identity.entity.metadata.environment}}/runtime/*" {
  capabilities = ["read"]
}
