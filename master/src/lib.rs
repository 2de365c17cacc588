//! The control plane: registry, roster, tokens. Never on the data path.
