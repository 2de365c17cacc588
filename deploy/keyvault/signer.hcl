# A master whose key is in the KeyVault ([master.signing]): it asks for signatures, sees public halves, and makes
# new versions when it rotates. It neither makes another key, nor changes, exports or deletes one.
path "transit/sign/wavry" {
  capabilities = ["update"]
}
path "transit/keys/wavry" {
  capabilities = ["read"]
}
# Leave this out where people make the versions (`vault write -f transit/keys/wavry/rotate`): the master takes the
# newest one that never signed, and cannot rotate after a compromise by itself.
path "transit/keys/wavry/rotate" {
  capabilities = ["update"]
}
