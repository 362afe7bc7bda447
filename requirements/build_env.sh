# Sourced by the Dockerfile: exports the lines NAME=value of the secret build_env, if it is there, or fails. Read as text,
# for a shell loses what has a space or a & in it, and the build would go on with the public index.
if [ -f /run/secrets/build_env ]; then
    number=0
    while read -r line || [ -n "${line}" ]; do
        number=$((number + 1))
        line="${line%"$(printf '\r')"}"
        line="${line#export }"
        name="${line%%=*}"
        value="${line#*=}"
        case "${line}" in '' | '#'*) continue ;; esac
        case "${name}" in
            '' | "${line}" | [0-9]* | *[!A-Za-z0-9_]*)
                echo "build_env: line ${number} is not NAME=value; write one such line for each variable" >&2
                return 1 ;;
        esac
        case "${value}" in
            \'*\'*\' | \"*\"*\") quotes=wrong ;;
            \'*\' | \"*\") quotes=right value="${value#?}" value="${value%?}" ;;
            \'* | \"*) quotes=wrong ;;
            *) quotes=none ;;
        esac
        if [ "${quotes}" = wrong ]; then
            echo "build_env: the quotes of ${name} do not enclose its value; leave them out, spaces need none" >&2
            return 1
        fi
        export "${name}=${value}"
    done < /run/secrets/build_env
fi
