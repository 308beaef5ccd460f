-- The table of users. Safe to apply again and again, as the service does at its start and `make schema`
-- on demand; by hand: psql --single-transaction --file schema.sql
--
-- It also brings a table of the older form (integer ids, plain-text `password`) to today's, in place.
-- Its passwords must be hashed by then, which `make schema` does first: the last constraint insists.

-- Waiting for a lock on a busy table blocks everyone who comes after: rather give up, and be run again.
SET LOCAL lock_timeout = '2s';
SET LOCAL client_encoding = 'UTF8';

-- Two emails are the same when this function returns the same for both, on every server: what lower() does depends on
-- the locale. It is Unicode's canonical caseless match (chapter 3.13, D145), with every letter that has a case. All forms
-- of i are alike too, as lower() turns them into each other in Turkish: so lower() never finds two emails the same that
-- this function does not. To change the rule, add another function with an index of its own.
DO $$
BEGIN
    IF to_regprocedure('public.user_email_fold(text)') IS NULL
    THEN
        CREATE FUNCTION public.user_email_fold(email text) RETURNS text
        LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $fold$
        DECLARE
            pair text[];
        BEGIN
            -- To normalize thousands of combining marks takes seconds, and no email is so long.
            IF octet_length(email) = length(email) OR octet_length(email) > 1024
            THEN
                RETURN lower(email COLLATE "C");
            END IF;
            email := translate(
                lower(normalize(email, NFD) COLLATE "C"),
                'ÆÐØÞĐĦĲĿŁŊŒŦſƁƂƄƆƇƉƊƋƎƏƐƑƓƔƖƗƘƜƝƟƢƤƦƧƩƬƮƱƲƳƵƷƸƼǄǅǇǈǊǋǤǱǲǶǷȜȠȢȤȺȻȽȾɁɃɄɅɆɈɊɌɎẞỺỼỾⱠⱢⱣⱤⱧⱩⱫⱭⱮⱯⱰⱲⱵⱾⱿꜢꜤꜦꜨꜪꜬ'
                'ꜮꜲꜴꜶꜸꜺꜼꜾꝀꝂꝄꝆꝈꝊꝌꝎꝐꝒꝔꝖꝘꝚꝜꝞꝠꝢꝤꝦꝨꝪꝬꝮꝹꝻꝽꝾꞀꞂꞄꞆꞋꞍꞐꞒꞖꞘꞚꞜꞞꞠꞢꞤꞦꞨꞪꞫꞬꞭꞮꞰꞱꞲꞳꞴꞶꞸꞺꞼꞾꟀꟂꟄꟅꟆꟇꟉꟐꟖꟘꟵﬅı'
                'ͰͲͶͿΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩςϏϐϑϕϖϘϚϜϞϠϰϱϴϵϷϹϺϽϾϿ'
                'ϢϤϦϨϪϬϮⲀⲂⲄⲆⲈⲊⲌⲎⲐⲒⲔⲖⲘⲚⲜⲞⲠⲢⲤⲦⲨⲪⲬⲮⲰⲲⲴⲶⲸⲺⲼⲾⳀⳂⳄⳆⳈⳊⳌⳎⳐⳒⳔⳖⳘⳚⳜⳞⳠⳢⳫⳭⳲ'
                'ЂЄЅІЈЉЊЋЏАБВГДЕЖЗИКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯѠѢѤѦѨѪѬѮѰѲѴѸѺѼѾҀҊҌҎҐҒҔҖҘҚҜҞҠҢҤҦҨҪҬҮҰҲҴҶҸҺҼҾӀӃӅӇӉӋӍӔӘӠӨӶӺӼӾԀԂ'
                'ԄԆԈԊԌԎԐԒԔԖԘԚԜԞԠԢԤԦԨԪԬԮᲀᲁᲂᲃᲄᲅᲆᲇᲈꙀꙂꙄꙆꙈꙊꙌꙎꙐꙒꙔꙖꙘꙚꙜꙞꙠꙢꙤꙦꙨꙪꙬꚀꚂꚄꚆꚈꚊꚌꚎꚐꚒꚔꚖꚘꚚ'
                'ԱԲԳԴԵԶԷԸԹԺԻԼԽԾԿՀՁՂՃՄՅՆՇՈՉՊՋՌՍՎՏՐՑՒՓՔՕՖ'
                'ႠႡႢႣႤႥႦႧႨႩႪႫႬႭႮႯႰႱႲႳႴႵႶႷႸႹႺႻႼႽႾႿჀჁჂჃჄჅჇჍᲐᲑᲒᲓᲔᲕᲖᲗᲘᲙᲚᲛᲜᲝᲞᲟᲠᲡᲢᲣᲤᲥᲦᲧᲨᲩᲪᲫᲬᲭᲮᲯᲰᲱᲲᲳᲴᲵᲶᲷᲸᲹᲺᲽᲾᲿ'
                'ᏸᏹᏺᏻᏼᏽꭰꭱꭲꭳꭴꭵꭶꭷꭸꭹꭺꭻꭼꭽꭾꭿꮀꮁꮂꮃꮄꮅꮆꮇꮈꮉꮊꮋꮌꮍꮎꮏꮐꮑꮒꮓꮔꮕꮖꮗꮘꮙꮚꮛꮜꮝꮞꮟꮠꮡꮢꮣꮤꮥꮦꮧꮨꮩꮪꮫꮬꮭꮮꮯꮰꮱꮲꮳꮴꮵꮶꮷꮸꮹꮺꮻꮼꮽꮾꮿ'
                'ⰀⰁⰂⰃⰄⰅⰆⰇⰈⰉⰊⰋⰌⰍⰎⰏⰐⰑⰒⰓⰔⰕⰖⰗⰘⰙⰚⰛⰜⰝⰞⰟⰠⰡⰢⰣⰤⰥⰦⰧⰨⰩⰪⰫⰬⰭⰮⰯ'
                'µℲⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩⅪⅫⅬⅭⅮⅯↃⒶⒷⒸⒹⒺⒻⒼⒽⒾⒿⓀⓁⓂⓃⓄⓅⓆⓇⓈⓉⓊⓋⓌⓍⓎⓏＡＢＣＤＥＦＧＨＩＪＫＬＭＮＯＰＱＲＳＴＵＶＷＸＹＺ𐐀𐐁𐐂𐐃𐐄𐐅𐐆𐐇𐐈𐐉𐐊𐐋𐐌𐐍𐐎𐐏𐐐𐐑𐐒𐐓𐐔𐐕𐐖𐐗𐐘𐐙𐐚𐐛𐐜'
                '𐐝𐐞𐐟𐐠𐐡𐐢𐐣𐐤𐐥𐐦𐐧𐒰𐒱𐒲𐒳𐒴𐒵𐒶𐒷𐒸𐒹𐒺𐒻𐒼𐒽𐒾𐒿𐓀𐓁𐓂𐓃𐓄𐓅𐓆𐓇𐓈𐓉𐓊𐓋𐓌𐓍𐓎𐓏𐓐𐓑𐓒𐓓𐕰𐕱𐕲𐕳𐕴𐕵𐕶𐕷𐕸𐕹𐕺𐕼𐕽𐕾𐕿𐖀𐖁𐖂𐖃𐖄𐖅𐖆𐖇𐖈𐖉𐖊𐖌𐖍𐖎𐖏𐖐𐖑𐖒𐖔𐖕𐲀𐲁𐲂𐲃𐲄𐲅𐲆𐲇𐲈𐲉𐲊𐲋𐲌𐲍𐲎𐲏𐲐𐲑'
                '𐲒𐲓𐲔𐲕𐲖𐲗𐲘𐲙𐲚𐲛𐲜𐲝𐲞𐲟𐲠𐲡𐲢𐲣𐲤𐲥𐲦𐲧𐲨𐲩𐲪𐲫𐲬𐲭𐲮𐲯𐲰𐲱𐲲𑢠𑢡𑢢𑢣𑢤𑢥𑢦𑢧𑢨𑢩𑢪𑢫𑢬𑢭𑢮𑢯𑢰𑢱𑢲𑢳𑢴𑢵𑢶𑢷𑢸𑢹𑢺𑢻𑢼𑢽𑢾𑢿𖹀𖹁𖹂𖹃𖹄𖹅𖹆𖹇𖹈𖹉𖹊𖹋𖹌𖹍𖹎𖹏𖹐𖹑𖹒𖹓𖹔𖹕𖹖𖹗𖹘𖹙𖹚𖹛𖹜𖹝𖹞𖹟𞤀𞤁𞤂'
                '𞤃𞤄𞤅𞤆𞤇𞤈𞤉𞤊𞤋𞤌𞤍𞤎𞤏𞤐𞤑𞤒𞤓𞤔𞤕𞤖𞤗𞤘𞤙𞤚𞤛𞤜𞤝𞤞𞤟𞤠𞤡',
                'æðøþđħĳŀłŋœŧsɓƃƅɔƈɖɗƌǝəɛƒɠɣɩɨƙɯɲɵƣƥʀƨʃƭʈʊʋƴƶʒƹƽǆǆǉǉǌǌǥǳǳƕƿȝƞȣȥⱥȼƚⱦɂƀʉʌɇɉɋɍɏßỻỽỿⱡɫᵽɽⱨⱪⱬɑɱɐɒⱳⱶȿɀꜣꜥꜧꜩꜫꜭ'
                'ꜯꜳꜵꜷꜹꜻꜽꜿꝁꝃꝅꝇꝉꝋꝍꝏꝑꝓꝕꝗꝙꝛꝝꝟꝡꝣꝥꝧꝩꝫꝭꝯꝺꝼᵹꝿꞁꞃꞅꞇꞌɥꞑꞓꞗꞙꞛꞝꞟꞡꞣꞥꞧꞩɦɜɡɬɪʞʇʝꭓꞵꞷꞹꞻꞽꞿꟁꟃꞔʂᶎꟈꟊꟑꟗꟙꟶﬆi'
                'ͱͳͷϳαβγδεζηθικλμνξοπρστυφχψωσϗβθφπϙϛϝϟϡκρθεϸϲϻͻͼͽ'
                'ϣϥϧϩϫϭϯⲁⲃⲅⲇⲉⲋⲍⲏⲑⲓⲕⲗⲙⲛⲝⲟⲡⲣⲥⲧⲩⲫⲭⲯⲱⲳⲵⲷⲹⲻⲽⲿⳁⳃⳅⳇⳉⳋⳍⳏⳑⳓⳕⳗⳙⳛⳝⳟⳡⳣⳬⳮⳳ'
                'ђєѕіјљњћџабвгдежзиклмнопрстуфхцчшщъыьэюяѡѣѥѧѩѫѭѯѱѳѵѹѻѽѿҁҋҍҏґғҕҗҙқҝҟҡңҥҧҩҫҭүұҳҵҷҹһҽҿӏӄӆӈӊӌӎӕәӡөӷӻӽӿԁԃ'
                'ԅԇԉԋԍԏԑԓԕԗԙԛԝԟԡԣԥԧԩԫԭԯвдосттъѣꙋꙁꙃꙅꙇꙉꙋꙍꙏꙑꙓꙕꙗꙙꙛꙝꙟꙡꙣꙥꙧꙩꙫꙭꚁꚃꚅꚇꚉꚋꚍꚏꚑꚓꚕꚗꚙꚛ'
                'աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆ'
                'ⴀⴁⴂⴃⴄⴅⴆⴇⴈⴉⴊⴋⴌⴍⴎⴏⴐⴑⴒⴓⴔⴕⴖⴗⴘⴙⴚⴛⴜⴝⴞⴟⴠⴡⴢⴣⴤⴥⴧⴭაბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰჱჲჳჴჵჶჷჸჹჺჽჾჿ'
                'ᏰᏱᏲᏳᏴᏵᎠᎡᎢᎣᎤᎥᎦᎧᎨᎩᎪᎫᎬᎭᎮᎯᎰᎱᎲᎳᎴᎵᎶᎷᎸᎹᎺᎻᎼᎽᎾᎿᏀᏁᏂᏃᏄᏅᏆᏇᏈᏉᏊᏋᏌᏍᏎᏏᏐᏑᏒᏓᏔᏕᏖᏗᏘᏙᏚᏛᏜᏝᏞᏟᏠᏡᏢᏣᏤᏥᏦᏧᏨᏩᏪᏫᏬᏭᏮᏯ'
                'ⰰⰱⰲⰳⰴⰵⰶⰷⰸⰹⰺⰻⰼⰽⰾⰿⱀⱁⱂⱃⱄⱅⱆⱇⱈⱉⱊⱋⱌⱍⱎⱏⱐⱑⱒⱓⱔⱕⱖⱗⱘⱙⱚⱛⱜⱝⱞⱟ'
                'μⅎⅰⅱⅲⅳⅴⅵⅶⅷⅸⅹⅺⅻⅼⅽⅾⅿↄⓐⓑⓒⓓⓔⓕⓖⓗⓘⓙⓚⓛⓜⓝⓞⓟⓠⓡⓢⓣⓤⓥⓦⓧⓨⓩａｂｃｄｅｆｇｈｉｊｋｌｍｎｏｐｑｒｓｔｕｖｗｘｙｚ𐐨𐐩𐐪𐐫𐐬𐐭𐐮𐐯𐐰𐐱𐐲𐐳𐐴𐐵𐐶𐐷𐐸𐐹𐐺𐐻𐐼𐐽𐐾𐐿𐑀𐑁𐑂𐑃𐑄'
                '𐑅𐑆𐑇𐑈𐑉𐑊𐑋𐑌𐑍𐑎𐑏𐓘𐓙𐓚𐓛𐓜𐓝𐓞𐓟𐓠𐓡𐓢𐓣𐓤𐓥𐓦𐓧𐓨𐓩𐓪𐓫𐓬𐓭𐓮𐓯𐓰𐓱𐓲𐓳𐓴𐓵𐓶𐓷𐓸𐓹𐓺𐓻𐖗𐖘𐖙𐖚𐖛𐖜𐖝𐖞𐖟𐖠𐖡𐖣𐖤𐖥𐖦𐖧𐖨𐖩𐖪𐖫𐖬𐖭𐖮𐖯𐖰𐖱𐖳𐖴𐖵𐖶𐖷𐖸𐖹𐖻𐖼𐳀𐳁𐳂𐳃𐳄𐳅𐳆𐳇𐳈𐳉𐳊𐳋𐳌𐳍𐳎𐳏𐳐𐳑'
                '𐳒𐳓𐳔𐳕𐳖𐳗𐳘𐳙𐳚𐳛𐳜𐳝𐳞𐳟𐳠𐳡𐳢𐳣𐳤𐳥𐳦𐳧𐳨𐳩𐳪𐳫𐳬𐳭𐳮𐳯𐳰𐳱𐳲𑣀𑣁𑣂𑣃𑣄𑣅𑣆𑣇𑣈𑣉𑣊𑣋𑣌𑣍𑣎𑣏𑣐𑣑𑣒𑣓𑣔𑣕𑣖𑣗𑣘𑣙𑣚𑣛𑣜𑣝𑣞𑣟𖹠𖹡𖹢𖹣𖹤𖹥𖹦𖹧𖹨𖹩𖹪𖹫𖹬𖹭𖹮𖹯𖹰𖹱𖹲𖹳𖹴𖹵𖹶𖹷𖹸𖹹𖹺𖹻𖹼𖹽𖹾𖹿𞤢𞤣𞤤'
                '𞤥𞤦𞤧𞤨𞤩𞤪𞤫𞤬𞤭𞤮𞤯𞤰𞤱𞤲𞤳𞤴𞤵𞤶𞤷𞤸𞤹𞤺𞤻𞤼𞤽𞤾𞤿𞥀𞥁𞥂𞥃'
            );
            FOREACH pair SLICE 1 IN ARRAY
                ARRAY[
                    ['ß', 'ss'], ['ŉ', 'ʼn'], ['և', 'եւ'], ['ẚ', 'aʾ'], ['ﬀ', 'ff'], ['ﬁ', 'fi'], ['ﬂ', 'fl'],
                    ['ﬃ', 'ffi'], ['ﬄ', 'ffl'], ['ﬆ', 'st'], ['ﬓ', 'մն'], ['ﬔ', 'մե'], ['ﬕ', 'մի'], ['ﬖ', 'վն'],
                    ['ﬗ', 'մխ'], [U&'\0345', 'ι'], [U&'i\0307', 'i']
                ]
            LOOP
                email := replace(email, pair[1], pair[2]);
            END LOOP;
            RETURN normalize(email, NFC);
        END
        $fold$;
        GRANT EXECUTE ON FUNCTION public.user_email_fold TO PUBLIC;
    END IF;
END
$$;

-- Generated ids begin where the ids that a client may choose end (2^31 - 1), so the two never meet. At the
-- largest id they begin again there: the service skips ids that are taken.
CREATE TABLE IF NOT EXISTS public."user" (
    id            bigint      NOT NULL GENERATED BY DEFAULT AS IDENTITY (MINVALUE 2147483648 CYCLE),
    fname         text        NOT NULL,
    lname         text        NOT NULL,
    email         text        NOT NULL,
    password_hash text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT user_pkey PRIMARY KEY (id)
);

-- The older form has a column `password` and no `password_hash`: somebody may add another `password` to today's.
DO $$
BEGIN
    IF (SELECT array_agg(attname::text) FROM pg_attribute
        WHERE attrelid = 'public."user"'::regclass AND attname IN ('password', 'password_hash') AND NOT attisdropped)
       = ARRAY['password']
    THEN
        ALTER TABLE public."user"
            ALTER COLUMN id DROP DEFAULT,
            ALTER COLUMN id TYPE bigint,
            ALTER COLUMN fname TYPE text,
            ALTER COLUMN lname TYPE text,
            ALTER COLUMN email TYPE text,
            ALTER COLUMN password TYPE text,
            ALTER COLUMN fname SET NOT NULL,
            ALTER COLUMN lname SET NOT NULL,
            ALTER COLUMN email SET NOT NULL,
            ALTER COLUMN password SET NOT NULL,
            ADD COLUMN created_at timestamptz NOT NULL DEFAULT now(),
            ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
        ALTER TABLE public."user" RENAME COLUMN password TO password_hash;
        DROP SEQUENCE IF EXISTS public.user_id_seq;
        ALTER TABLE public."user"
            ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (MINVALUE 2147483648 CYCLE);
    END IF;
END
$$;

-- A table made before its ids cycled.
DO $$
DECLARE
    sequence regclass := pg_get_serial_sequence('public."user"', 'id');
BEGIN
    IF EXISTS (SELECT FROM pg_sequence WHERE seqrelid = sequence AND NOT seqcycle)
    THEN
        EXECUTE format('ALTER SEQUENCE %s CYCLE', sequence);
    END IF;
END
$$;

-- On a table with rows, the service builds the index of emails afterwards, without blocking writes. By hand:
-- CREATE UNIQUE INDEX CONCURRENTLY user_email_folded_key ON public."user" (public.user_email_fold(email) COLLATE "C");
DO $$
DECLARE
    same text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('public.user_email_folded_key') AND indisvalid)
    THEN
        SELECT string_agg(ids, '; ' ORDER BY first) INTO same
        FROM (SELECT min(id) AS first, string_agg(id::text, ', ' ORDER BY id) AS ids
              FROM public."user"
              GROUP BY public.user_email_fold(email) COLLATE "C"
              HAVING count(*) > 1
              ORDER BY first
              LIMIT 20) AS groups;
        IF same IS NOT NULL
        THEN
            RAISE 'users have the same email but for its case, change or delete all but one: ids %', same;
        END IF;
        IF NOT EXISTS (SELECT FROM public."user")
        THEN
            CREATE UNIQUE INDEX IF NOT EXISTS user_email_folded_key
                ON public."user" (public.user_email_fold(email) COLLATE "C");
        END IF;
    END IF;

    -- The release before this one looks users up by lower(email). The next one can drop this index.
    IF to_regclass('public.user_email_lower_key') IS NULL
    THEN
        CREATE UNIQUE INDEX user_email_lower_key ON public."user" (lower(email));
    END IF;
END
$$;

-- For lists. On a table with rows, the service builds them afterwards, while it answers and without blocking writes.
-- By hand, with CREATE INDEX CONCURRENTLY, and then ANALYZE public."user".
DO $$
BEGIN
    IF to_regclass('public.user_lname_folded_idx') IS NULL AND NOT EXISTS (SELECT FROM public."user")
    THEN
        CREATE INDEX user_lname_folded_idx ON public."user" (public.user_email_fold(lname) COLLATE "C");
    END IF;
    IF to_regclass('public.user_updated_at_idx') IS NULL AND NOT EXISTS (SELECT FROM public."user")
    THEN
        CREATE INDEX user_updated_at_idx ON public."user" (updated_at, id);
    END IF;
END
$$;

-- No plain text, whoever writes it: Argon2id, and what an import brings of bcrypt. ADD CONSTRAINT has no IF NOT EXISTS.
-- The rule of the release before, LIKE '$argon2id$%', is replaced without a scan: the service validates it afterwards.
-- By hand: ALTER TABLE public."user" VALIDATE CONSTRAINT user_password_hash_check;
DO $$
DECLARE
    rule text := (SELECT pg_get_constraintdef(oid)
                  FROM pg_constraint
                  WHERE conrelid = 'public."user"'::regclass AND conname = 'user_password_hash_check');
BEGIN
    IF rule IS NULL
    THEN
        ALTER TABLE public."user"
            ADD CONSTRAINT user_password_hash_check CHECK (password_hash ~ '^\$(argon2id|2[aby])\$');
    ELSIF rule LIKE '%~~%'
    THEN
        ALTER TABLE public."user"
            DROP CONSTRAINT user_password_hash_check,
            ADD CONSTRAINT user_password_hash_check CHECK (password_hash ~ '^\$(argon2id|2[aby])\$') NOT VALID;
    END IF;
END
$$;

-- Failed logins, by a hash of the folded email. A crash of PostgreSQL empties the table, which does no harm.
CREATE UNLOGGED TABLE IF NOT EXISTS public.failed_login (
    email_hash bytea       NOT NULL,
    failures   integer     NOT NULL,
    retry_at   timestamptz NOT NULL,
    CONSTRAINT failed_login_pkey PRIMARY KEY (email_hash)
);
DO $$
BEGIN
    IF to_regclass('public.failed_login_retry_at_idx') IS NULL
    THEN
        CREATE INDEX failed_login_retry_at_idx ON public.failed_login (retry_at);
    END IF;
END
$$;

-- Gives a row a new version with each change, whoever makes it: psql, and a release that knows nothing of versions. Versions
-- are microseconds since 1970. So a version that a restore or a failover undid is never given to other content, and a row
-- that is deleted and made again with the same id has none of the former versions.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_proc
                   WHERE oid = to_regprocedure('public.count_version()') AND prosrc LIKE '%greatest%')
    THEN
        CREATE OR REPLACE FUNCTION public.count_version() RETURNS trigger LANGUAGE plpgsql AS $count$
        BEGIN
            NEW.version := greatest(OLD.version + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
            RETURN NEW;
        END
        $count$;
    END IF;

    -- The first default is for the rows that exist, which are not rewritten.
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'public."user"'::regclass AND attname = 'version' AND NOT attisdropped)
    THEN
        ALTER TABLE public."user" ADD COLUMN version bigint NOT NULL DEFAULT 1;
        ALTER TABLE public."user"
            ALTER COLUMN version SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    END IF;

    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'public."user"'::regclass AND tgname = 'user_version')
    THEN
        CREATE TRIGGER user_version BEFORE UPDATE ON public."user"
            FOR EACH ROW EXECUTE FUNCTION public.count_version();
    END IF;
END
$$;

-- What each write with an Idempotency-Key answered, kept for a day. The body is that of the answer. Of the request there
-- are only hashes: the fingerprint's key is the Idempotency-Key, of which the table has a hash, so nobody who reads the
-- table can try passwords against it.
CREATE TABLE IF NOT EXISTS public.idempotency_key (
    key_hash    bytea       NOT NULL,
    fingerprint bytea       NOT NULL,
    status      smallint    NOT NULL,
    id          bigint      NOT NULL,
    version     bigint,
    body        text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_key_pkey PRIMARY KEY (key_hash)
);
DO $$
BEGIN
    IF to_regclass('public.idempotency_key_created_at_idx') IS NULL
    THEN
        CREATE INDEX idempotency_key_created_at_idx ON public.idempotency_key (created_at);
    END IF;
END
$$;
