# A gateway that keeps in a KeyVault what it obtains from public authorities: keyvault = "secret/wavry/acme" in
# [gateway.acme]. It writes accounts, orders, and certificates with their keys.
path "secret/data/wavry/acme/*" {
  capabilities = ["create", "update", "read"]
}
