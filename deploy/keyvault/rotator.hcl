# Who puts new versions of secrets in, of every environment and both kinds, and need not read what is there.
path "secret/data/wavry/+/runtime/*" {
  capabilities = ["create", "update"]
}
path "secret/data/wavry/+/build/*" {
  capabilities = ["create", "update"]
}
# Which versions there are, and their end.
path "secret/metadata/wavry/*" {
  capabilities = ["read", "list"]
}
path "secret/destroy/wavry/*" {
  capabilities = ["update"]
}
