"""AWS KMS and IAM as moto plays them, which checks each request's signature and permission.

Prints where it is and what it made, as one JSON object; then does what each line of its input says, a JSON object with
`do`, and answers with one.
"""

import base64
import json
import logging
import sys
import urllib.request

import boto3
from moto.server import ThreadedMotoServer

REGION = "eu-central-1"


def main():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"

    def client(service, access_key=None):
        key = access_key or {"AccessKeyId": "unchecked", "SecretAccessKey": "unchecked"}
        return boto3.client(
            service,
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=key["AccessKeyId"],
            aws_secret_access_key=key["SecretAccessKey"],
        )

    iam = client("iam")

    def user(name, actions):
        iam.create_user(UserName=name)
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
        return iam.create_access_key(UserName=name)["AccessKey"]

    administrator = user("administrator", ["*"])
    master = user("master", ["kms:Decrypt"])
    # From now on what is not signed by one of them, and allowed to it, is refused.
    reset = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0")
    # As the form that it is otherwise taken for, it would be no number.
    reset.add_header("Content-Type", "text/plain")
    urllib.request.urlopen(reset).close()
    kms = client("kms", administrator)
    iam = client("iam", administrator)
    say(
        url=url,
        region=REGION,
        access_key_id=master["AccessKeyId"],
        secret_access_key=master["SecretAccessKey"],
        key=new_key(kms),
    )
    for line in sys.stdin:
        wanted = json.loads(line)
        match wanted["do"]:
            case "encrypt":
                sealed = kms.encrypt(
                    KeyId=wanted["key"],
                    Plaintext=wanted["plaintext"].encode(),
                    EncryptionContext=wanted["context"],
                )
                say(ciphertext=base64.b64encode(sealed["CiphertextBlob"]).decode())
            case "new_key":
                say(key=new_key(kms))
            case "forbid":
                iam.delete_user_policy(UserName="master", PolicyName="master")
                say()


def new_key(kms):
    return kms.create_key()["KeyMetadata"]["Arn"]


def say(**what):
    print(json.dumps(what), flush=True)


main()
